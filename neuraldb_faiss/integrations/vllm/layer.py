"""The database at a layer of vLLM's model: the operator that looks a step's tokens up, and where it goes in."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from neuraldb_faiss.config import same_place
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import CompactedError, FingerprintError, ModelError, ServeError
from neuraldb_faiss.fingerprint import Fingerprint
from neuraldb_faiss.guard.gate import Gate, Tokens, make_gate
from neuraldb_faiss.guard.registry import REGISTRY
from neuraldb_faiss.hook.forward_context import Context
from neuraldb_faiss.hook.lookup import Lookup
from neuraldb_faiss.index.matcher import Matcher
from neuraldb_faiss.index.transfers import to_device
from neuraldb_faiss.integrations.vllm.batches import Requests, Step
from neuraldb_faiss.integrations.vllm.settings import OPERATOR, Settings
from neuraldb_faiss.models.fingerprint import sample_weight
from neuraldb_faiss.models.loading import tokenizer_of
from neuraldb_faiss.models.sites import projection_shape
from neuraldb_faiss.models.tokenization import appended_tokens

logger = logging.getLogger("vllm.neuraldb")
_OPTIONS: dict[str, Any] = {"tags": torch.Tag.cudagraph_unsafe} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
_served: dict[str, Served] = {}  # by the layer's name; an engine has one


class Served:
    """A database that answers in this process. step: the one that runs, None between steps and while vLLM warms up."""

    def __init__(self, gate: Gate, db: NeuralDB | None = None) -> None:
        """gate: of `db`, which only `refresh` and `describe` need."""
        self._gate = gate
        self._db = db
        self._lookup = Lookup(gate, cast(Context, self), 0, self._renew)
        self._now: Tokens | None = None
        self.requests = Requests()
        self.step: Step | None = None

    @classmethod
    def of(cls, db: NeuralDB, settings: Settings, tokenizer: str, device: torch.device) -> Served:
        """tokenizer: where it lies; the guard "subject" reads the text with it. Raises ModelError where it is not
        there, ServeError for a guard that cannot be kept here."""
        guard = settings.guard or db.guard
        kind = REGISTRY[guard]
        if kind.looks_ahead:
            raise ServeError(
                f"the guard {guard} looks at the next token, which vLLM's chunks and cached prefixes do not have:"
                " set NEURALDB_GUARD=subject"
            )
        if not same_place(db.guard, "subject") or not same_place(guard, "subject"):
            raise ServeError(
                "the guard answer fires where a prompt ends, which vLLM's chunks do not tell: serve this database"
                " with `neuraldb serve`"
            )
        gamma = settings.gamma
        if gamma is None:
            gamma = db.gamma if guard == db.guard else kind.gamma
        found = tokenizer_of(SimpleNamespace(name_or_path=tokenizer)) if kind.reads_text else None
        if kind.reads_text and found is None:
            raise ModelError(
                f"the guard {guard!r} reads the text, and {tokenizer} has no fast tokenizer: name one (--tokenizer), or"
                " set NEURALDB_GUARD=none"
            )
        if found is not None and (behind := appended_tokens(found)):
            names = "".join(found.convert_ids_to_tokens(behind))
            logger.warning(
                "neuraldb: this tokenizer puts %s behind every prompt, behind which a model begins another text: send"
                ' token ids, or "add_special_tokens": false',
                names,
            )

        def plain(gamma: float) -> Matcher:
            return db.matcher("auto", gamma=gamma, device=device)

        return cls(make_gate(guard, gamma, db.snapshot, None, found, plain=plain), db)

    @property
    def hits(self) -> int:
        """Tokens that fired, ever."""
        return self._lookup.hits

    def describe(self) -> str:
        return f"{self._db!r}, guard {self._gate.guard}, gamma {self._gate.gamma}"

    def refresh(self) -> int:
        """Move to the newest generation; that generation."""
        assert self._db is not None
        self._db.refresh()
        self._gate.refresh(self._db.snapshot)
        return self._db.generation

    def _renew(self, error: CompactedError) -> None:
        generation = self.refresh()
        warnings.warn(f"{error}: generation {generation} answers from now on", stacklevel=2)

    def begin(self, requests: Sequence[str], counts: np.ndarray, computed: np.ndarray, ids: Tensor) -> None:
        """A step is about to run; arguments as for `Step`."""
        self.step = Step(list(requests), counts.astype(np.int64), computed.astype(np.int64), ids)

    def end(self) -> None:
        """It ran. Raises ModelError where no lookup was made in it: compiled code, or a CUDA graph, that knows nothing
        of the database."""
        step, self.step = self.step, None
        if step is not None and not step.done:
            raise ModelError(
                "a step of vLLM ran past the database: its compiled code or CUDA graphs leave the lookup out; clear"
                " ~/.cache/vllm/torch_compile_cache, or start with --enforce-eager"
            )

    def tokens(self, shape: torch.Size) -> Tokens:
        """For the lookup, as `Context.tokens`."""
        assert self._now is not None and shape.numel() == self._now.positions.size
        return self._now

    def add(self, keys: Tensor, output: Tensor) -> None:
        """Add what fires on `keys` [>= N, d1] to `output` [>= N, d2], in place; rows behind the step's are padding."""
        step = self.step
        if step is None:
            return
        for rows, tokens in self.requests.texts(step, past=self._gate.wants_past):
            self._now = tokens
            everything = len(rows) == len(keys) and len(tokens.positions) == 1
            places = None if everything else to_device(rows, keys.device)
            found = self._lookup.find(keys if places is None else keys[places], output.dtype)
            if found is not None:
                at, residuals = found
                output.index_add_(0, at if places is None else places[at], residuals)
        self._now = None
        step.done = True


_SCHEMA = "(Tensor keys, Tensor(a!) output, str name) -> ()"


# In place: behind it a CUDA graph reads the very memory that the one before it wrote.
@torch.library.custom_op(OPERATOR, mutates_args=("output",), schema=_SCHEMA, **_OPTIONS)
def _operator(keys: Tensor, output: Tensor, name: str) -> None:
    if name not in _served:
        raise ModelError(f"code compiled for a database at {name} runs without one: clear vLLM's compile cache")
    with torch.no_grad():
        _served[name].add(keys, output)


@_operator.register_fake
def _nothing(keys: Tensor, output: Tensor, name: str) -> None:
    return None


def served() -> Served | None:
    """What answers in this process."""
    return next(iter(_served.values()), None)


def serve(model: nn.Module, text_config: Any, settings: Settings, tokenizer: str, device: torch.device) -> Served:
    """Put a database into `model`, vLLM's, before it is compiled.

    Args:
        model: with its weights as they were loaded, before they are packed for kernels.
        text_config: the Hugging Face configuration of its language model.
        tokenizer: where the tokenizer lies. device: the layer's.

    Raises:
        ModelError: the layer is not found, or only a part of it. FingerprintError: the database is another model's.
    """
    db = NeuralDB.open(settings.path)
    stored = db.config.model
    name, module = find_layer(model, stored)
    check_weights(model, text_config, stored, name)
    found = Served.of(db, settings, tokenizer, device)
    answer(module, name, found)
    return found


def answer(module: nn.Module, name: str, found: Served) -> None:
    """From now on `found` answers at `module`, and at no other; it has a `forward` of its own then, which torch.compile
    sees (a hook that is set after compiling it does not). name: the module's."""
    _served.clear()
    _served[name] = found
    inside = module.forward

    @wraps(inside)
    def forward(keys: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = inside(keys, *args, **kwargs)
        # A tuple: with a bias that somebody else adds.
        torch.ops.neuraldb.vllm_lookup(keys, out[0] if isinstance(out, tuple) else out, name)
        return out

    module.__dict__["forward"] = forward


def find_layer(model: nn.Module, stored: Fingerprint) -> tuple[str, nn.Module]:
    """The down-projection that a database with this fingerprint edits, and its name in vLLM's model.

    vLLM calls it as transformers does, or puts another word before it. Raises ModelError: it is not there, there are
    several, its shape is another, or it is split over ranks.
    """
    modules = dict(model.named_modules())
    tail = _tail(stored.module_name)
    names = [name for name in modules if name == tail or name.endswith(f".{tail}")]
    fitting = [name for name in names if _shape(modules[name]) == (stored.d1, stored.d2)]
    if stored.module_name in fitting:
        fitting = [stored.module_name]
    kind = type(model).__name__
    if not fitting:
        there = ", ".join(f"{name} ({type(modules[name]).__name__} {_shape(modules[name])})" for name in names)
        raise ModelError(
            f"vLLM's {kind} has no {tail} from {stored.d1} to {stored.d2}, which the database edits"
            f" ({f'found {there}' if there else 'nothing is called so'}): the layer is on another rank, or this model"
            " cannot be served with a database in vLLM; use `neuraldb serve`"
        )
    if len(fitting) > 1:
        raise ModelError(f"vLLM's {kind} has several {tail}: {', '.join(fitting)}; use `neuraldb serve`")
    module = modules[fitting[0]]
    if (ranks := getattr(module, "tp_size", 1)) != 1:
        raise ModelError(f"{fitting[0]} is split over {ranks} ranks: use tensor parallelism of 1")
    return fitting[0], module


def check_weights(model: nn.Module, text_config: Any, stored: Fingerprint, name: str) -> None:
    """Raises FingerprintError where a weight that vLLM keeps as transformers does is not the one that made the keys."""
    tail = _tail(name)
    theirs, ours = stored.module_name.removesuffix(tail), name.removesuffix(tail)
    weights = dict(model.named_parameters())
    vocabulary = int(getattr(text_config, "vocab_size", 0) or 0)
    samples = []
    for known, values in stored.samples:
        weight: Tensor | None = weights.get(known, weights.get(ours + known.removeprefix(theirs)))
        if weight is None:  # q, k and v in one matrix, say
            continue
        if vocabulary and weight.ndim == 2 and weight.shape[0] > vocabulary and "embed" in known:
            weight = weight[:vocabulary]  # vLLM pads it
        made = [sample_weight(one, len(values)) for one in ((weight, weight.T) if weight.ndim == 2 else (weight,))]
        best = max(filter(None, made), key=lambda one: sum(map(int.__eq__, one, values)), default=None)
        if best is not None:
            samples.append((known, best))
    found = Fingerprint(
        model_type=str(getattr(text_config, "model_type", "")),
        n_layers=int(getattr(text_config, "num_hidden_layers", 0) or getattr(text_config, "n_layer", 0)),
        d1=stored.d1, d2=stored.d2, vocab_size=vocabulary, layer=stored.layer, module_name=stored.module_name,
        samples=tuple(samples),
    )  # fmt: skip
    if not stored.matches(found):
        raise FingerprintError(
            f"the database was built with {stored.describe()}; this model is {found.describe()}. Serve the right model,"
            " or make the database anew for this one (`neuraldb rebuild`)"
        )


def _tail(name: str) -> str:
    """A module's name from the word before the layer's number on: "layers.3.mlp.down_proj"."""
    found = re.search(r"[^.]+\.\d+\..+$", name)
    return found[0] if found else name


def _shape(module: nn.Module) -> tuple[int, int] | None:
    sizes = getattr(module, "input_size", None), getattr(module, "output_size", None)
    return sizes if all(isinstance(size, int) for size in sizes) else projection_shape(module)  # type: ignore[return-value]
