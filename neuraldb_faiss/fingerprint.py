"""Fingerprint of the model that a database belongs to, as it is stored.

`neuraldb_faiss.models.fingerprint` takes one of a loaded model; here nothing needs torch.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from neuraldb_faiss.errors import FingerprintError
from neuraldb_faiss.strict_json import is_count, parse_object

ADAPTER_MARK = "adapter:"  # begins the name of an adapter's weight
_EQUAL_SHARE = 0.9  # float32 to float16 to bfloat16 rounds twice and so moves up to 6 % of the samples
_EQUAL_SHARE_TENSOR = 0.6  # one replaced tensor among hundreds must not drown; 32 samples spread more than all
_NO_MODEL = "none"
_SHAPE_FIELDS = ("model_type", "n_layers", "d1", "d2", "vocab_size", "layer", "module_name")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a database keeps of its model.

    ``samples``: (parameter name, bfloat16 bit patterns as uint16 numbers) a sampled weight, at and below
    ``layer``. Offloaded and quantised weights are left out, so only weights that both models show are
    compared. Weights that PEFT's adapters add are there under names of their own, with no numbers where they
    cannot be read.
    """

    model_type: str
    n_layers: int
    d1: int
    d2: int
    vocab_size: int
    layer: int
    module_name: str
    samples: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def none(cls) -> Fingerprint:
        """That of databases which belong to no model: their facts are stated, and have neither keys nor residuals."""
        return cls(_NO_MODEL, 0, 1, 1, 0, 0, "none", ())

    @property
    def is_none(self) -> bool:
        """Whether it says that there is no model."""
        return self.model_type == _NO_MODEL

    def to_json(self) -> str:
        """One line of JSON; samples as hexadecimal, four digits each."""
        fields = asdict(self)
        fields["samples"] = {name: "".join(f"{value:04x}" for value in values) for name, values in self.samples}
        return json.dumps(fields, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Read ``to_json``'s form. Raises FingerprintError for anything else."""
        try:
            fields = parse_object(text)
            found = fields.pop("samples")
            if set(fields) != set(_SHAPE_FIELDS) or not isinstance(found, dict):
                raise ValueError("its fields are not those of a fingerprint")
            samples = tuple((name, _unhex(digits)) for name, digits in sorted(found.items()))
        except (ValueError, KeyError) as error:
            raise FingerprintError(f"the stored model fingerprint cannot be read ({error}): run verify") from error
        for name in _SHAPE_FIELDS:
            value = fields[name]
            if not (isinstance(value, str) if name in ("model_type", "module_name") else is_count(value)):
                raise FingerprintError(f"the stored model fingerprint has a wrong {name}: run verify")
        return cls(samples=samples, **fields)

    def matches(self, other: Fingerprint) -> bool:
        """Whether keys made with one model are keys of the other: equal shapes, and the share of equal
        samples is at least 0.9 over all and 0.6 in every weight that both show; adapters in both or in neither."""
        if any(getattr(self, name) != getattr(other, name) for name in _SHAPE_FIELDS):
            return False
        if self.is_none:
            return True
        if self._adapters() != other._adapters():
            return False
        theirs = dict(other.samples)
        equal = total = 0
        for name, mine in self.samples:
            values = theirs.get(name)
            if not values or not mine:
                continue
            if len(values) != len(mine):
                return False
            same = sum(a == b for a, b in zip(mine, values, strict=True))
            if same < _EQUAL_SHARE_TENSOR * len(mine):
                return False
            equal, total = equal + same, total + len(mine)
        return total > 0 and equal >= _EQUAL_SHARE * total

    def describe(self) -> str:
        """A short line for people, as in "llama, 30 layers, 576/1536, vocabulary 49152, layer 3,
        1a2b3c4d"; an adapter that changes the keys is named."""
        if self.is_none:
            return "no model (its facts are stated, none fires)"
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        adapter = ", with an adapter (PEFT) at or below it" if self._adapters() else ""
        return (
            f"{self.model_type}, {self.n_layers} layers, {self.d2}/{self.d1}, vocabulary {self.vocab_size}, "
            f"layer {self.layer}{adapter}, {digest}"
        )

    def _adapters(self) -> set[str]:
        return {name for name, _ in self.samples if name.startswith(ADAPTER_MARK)}


def _unhex(digits: object) -> tuple[int, ...]:
    if not isinstance(digits, str) or len(digits) % 4:
        raise ValueError("a sample is cut short")
    return tuple(int(digits[i : i + 4], 16) for i in range(0, len(digits), 4))
