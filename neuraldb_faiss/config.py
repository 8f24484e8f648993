"""Vocabulary, defaults, checks and stored settings of a database; needs no numerical library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from neuraldb_faiss.errors import BuildError, ConfigError, CorruptError
from neuraldb_faiss.fingerprint import Fingerprint
from neuraldb_faiss.guard.registry import REGISTRY as GUARDS
from neuraldb_faiss.strict_json import is_count, is_number, is_strings, shown

KEYS = ("two", "paper")
OPTIMIZERS = ("adam", "sampled")
# Defaults of "sampled" in place of the objective's own, measured on CounterFact (docs/performance.md).
SAMPLED = {"steps": 16, "lr": 0.6, "stop_loss": 0.1}
DELIVERIES = ("auto", "residual", "text", "both")

MAX_WIDTH = 1 << 24  # numbers in one key or residual
_MAX_LAYERS = 1 << 16


# ---- checks of what a user gives


def check_gamma(gamma: float) -> float:
    """The gate as a float. Raises ConfigError unless 0 <= gamma < 1."""
    if not 0 <= gamma < 1:
        raise ConfigError(
            f"gamma is {gamma}: it is a cosine, at least 0 and below 1 (by default {default_gamma('subject')} with the"
            f" guard subject, {default_gamma('none')} with none)"
        )
    return float(gamma)


def check_gate(guard: str, gamma: float | None) -> float:
    """The gate of a guard, its own where `gamma` is None. Raises ConfigError for an unknown guard, for a gamma out of
    range, and for any where the guard asks for no cosine."""
    kind = GUARDS[guard]
    if gamma and kind.place == "answer":
        raise ConfigError(f"gamma is {gamma}, and the guard {guard} asks for no cosine: leave gamma out")
    return kind.gamma if gamma is None else check_gamma(gamma)


def default_gamma(guard: str) -> float:
    """The gate (a cosine, eq. 11) that suits a guard. Raises ConfigError for an unknown one."""
    return GUARDS[guard].gamma


def check_guard(guard: str) -> str:
    """Raises ConfigError for an unknown guard."""
    return GUARDS[guard].name


def same_place(guard: str, other: str) -> bool:
    """Whether two guards have entries fire at the same place of a text, so that residuals for one do for the other."""
    return GUARDS[guard].place == GUARDS[other].place


def check_kl_prompts(templates: Sequence[str]) -> None:
    """Raises BuildError for one without one {}, where the subject goes."""
    for template in templates:
        if template.count("{}") != 1:
            raise BuildError(f"the KL prompt {template!r} must hold one {{}}, where the subject goes")


def check_choice(name: str, value: str, known: Sequence[str]) -> str:
    """The value of the setting `name`. Raises ConfigError where it is not one of `known`."""
    if value not in known:
        raise ConfigError(f"{name} is {value!r}: it must be one of {', '.join(known)}")
    return value


def resolve_delivery(wanted: str, *, residuals: bool, own_prompt: bool = False) -> str:
    """How facts reach one request: "residual" (the hook adds their residuals), "text" (their statements go into the
    prompt and nothing fires) or "both".

    Args:
        wanted: one of DELIVERIES. "auto" is what measured best (docs/answers.md): text, but for a fact's own prompt,
            which its residual was solved for.
        own_prompt: whether it is a text that ends with the prompt of a fact.
        residuals: whether the database has residuals.

    Raises:
        ConfigError: an unknown delivery.
    """
    check_choice("delivery", wanted, DELIVERIES)
    if wanted == "auto":
        return "residual" if own_prompt and residuals else "text"
    return "text" if wanted == "both" and not residuals else wanted


# ---- settings


@dataclass(frozen=True, slots=True)
class ResidualConfig:
    """Settings of equation 21 (sources: the paper's table of settings and the reference code of MEMIT).

    `weight_decay` weighs ||r|| / ||h_init||^2, `clamp` bounds ||r|| by clamp * ||h_init||, `steps` counts
    loss evaluations (the last one is not followed by an update), `stop_loss` ends a group early. A group with a fact
    that the model does not say by then goes on until it says them all, up to `max_steps`: facts that share a key, and
    long targets, ask for more of one vector.

    `kl_prompts` are templates with one {} for the subject. Beside what follows the subject itself (in "{} is a", as
    in the reference code), what the model would say next behind each of these is kept: the KL term is their mean.

    `end_factor` weighs the NLL of the end of the target's last word ("Anna Berg", not "Anna Bergman"); the paper has no
    such term, and databases from before it go on without.

    `optimizer` "adam" is the paper's, over all of a fact's rows at every step. "sampled" takes normalised steps, each
    over the raw prompt and one context in turn, and looks at all rows once a step's own loss is near `stop_loss`; `lr`
    is then the first step's length in units of ||h_init|| (`solver.sampled`).
    """

    steps: int
    lr: float
    weight_decay: float
    clamp: float
    kl_factor: float
    stop_loss: float = 0.05
    kl_prompts: tuple[str, ...] = ()
    max_steps: int = 0
    end_factor: float = 0.0
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        """Raises BuildError for a KL prompt without one {}, and ConfigError for an unknown optimizer."""
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_kl_prompts(self.kl_prompts)
        object.__setattr__(self, "kl_prompts", tuple(self.kl_prompts))  # JSON has lists


@dataclass(frozen=True)
class IndexConfig:
    """How keys are searched.

    Attributes:
        kind: its name in `index.registry`.
        options: those of the kind that are set, by the names that its row has; whole numbers of at least 1.
    """

    kind: str = "flat"
    options: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> IndexConfig:
        """Read kind and options from one JSON object; an option that is None is not set."""
        return cls(stored["kind"], {name: stored[name] for name in stored if name != "kind" and stored[name]})

    def to_json(self) -> dict[str, Any]:
        """Kind and options as one JSON object."""
        return {"kind": self.kind, **self.options}


@dataclass(frozen=True)
class DatabaseConfig:
    """The settings of a database at one generation, as its catalog stores them.

    Attributes:
        fingerprint: JSON of the model's fingerprint (parsed: `model`).
        layer: the decoder layer whose FFN is edited, from 0.
        ffn_module: the down-projection's name with {} for the layer; None where it is found by itself.
        d1, d2: numbers in a key and in a residual.
        prefixes: contexts behind which prefixed keys and residuals are made.
        keys: "two" keys a fact (raw, and mean behind prefixes), or the "paper"'s one average (eq. 20).
        residual: the objective: "memit", "pmet" or "none".
        config: settings of the objective as stored (parsed: `objective`).
        gamma: the gate; a residual fires where the cosine exceeds it (eq. 11).
        guard: what the text must show before the gate is asked. Databases from before guards have "none".
        floors: name -> the cosine that calibration found it needs.
        index: how keys are searched.
        model_name: where the model came from; for people, compared with nothing.
        epoch: number of the current numbering of keys; every compaction begins another.
        history_start: the first generation that is kept.
        delivery: how facts reach a request, one of DELIVERIES; databases from before deliveries have "auto".
        stored: the JSON object that this was read from; keeps what this version does not know.
    """

    fingerprint: str
    layer: int
    ffn_module: str | None
    d1: int
    d2: int
    prefixes: tuple[str, ...]
    keys: str
    residual: str
    config: Mapping[str, Any]
    gamma: float
    guard: str = "none"
    floors: Mapping[str, float] = field(default_factory=dict)
    index: IndexConfig = IndexConfig()
    model_name: str | None = None
    epoch: int = 1
    history_start: int = 1
    delivery: str = "auto"
    stored: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> DatabaseConfig:
        """Read stored settings; of one folder's own (index, epoch, history_start) a missing one has its default.

        Raises:
            ValueError: one is missing, or has a value that it cannot have.
        """
        check_settings({**_OWN, **stored})
        return cls.of_checked(stored)

    @classmethod
    def of_checked(cls, stored: Mapping[str, Any]) -> DatabaseConfig:
        """`from_json` of what `check_settings` has passed."""
        found = {one.name: stored[one.name] for one in fields(cls) if stored.get(one.name) is not None}
        found |= {"ffn_module": stored["ffn_module"], "prefixes": tuple(stored["prefixes"]), "stored": dict(stored)}
        if "index" in found:
            found["index"] = IndexConfig.from_json(found["index"])
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """What the catalog keeps: exactly what was read where nothing was replaced, and what else it held."""
        was = self.from_json(self.stored)._values() if self.stored else {"floors": {}}
        mine = self._values()
        return {**self.stored, **{name: mine[name] for name in mine if name not in was or was[name] != mine[name]}}

    def _values(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "stored"}
        plain = {"prefixes": list(self.prefixes), "config": dict(self.config), "floors": dict(self.floors)}
        return {**values, **plain, "index": self.index.to_json()}

    @cached_property
    def model(self) -> Fingerprint:
        """The model it was built with. Raises FingerprintError where what is stored cannot be read."""
        return Fingerprint.from_json(self.fingerprint)

    @property
    def has_model(self) -> bool:
        """Whether it was built with a model; else its facts have no keys, and can only be stated."""
        return not self.model.is_none

    @property
    def has_residuals(self) -> bool:
        """Whether its facts were solved, so that they can be said without being stated."""
        return self.residual != "none"

    @cached_property
    def objective(self) -> ResidualConfig:
        """The settings of the residuals' objective. Raises CorruptError where what is stored cannot be read."""
        try:
            return ResidualConfig(**{name: value for name, value in self.config.items() if name not in _GONE})
        except TypeError:  # names that there are not, values of another type
            names = ", ".join(map(ascii, self.config))[:200]
            raise CorruptError(f"the stored setting config cannot be read (it has {names})") from None

    def check_known(self) -> None:
        """Raises CorruptError where a setting is of a kind that this version does not know."""
        for name, known in (("keys", KEYS), ("guard", tuple(GUARDS.kinds)), ("delivery", DELIVERIES)):
            if (value := getattr(self, name)) not in known:
                raise CorruptError(f"the stored setting {name} is {shown(value)}, which it cannot be")


# ---- checks of what is stored


def check_settings(settings: Mapping[str, Any]) -> None:
    """Names that are not listed here may have any value.

    Raises:
        ValueError: one is missing, or has a value that it cannot have.
    """
    for name, fits in _NEEDED.items():
        if name not in settings:
            raise ValueError(f"the setting {name} is missing")
        if not fits(settings[name]):
            raise ValueError(f"the setting {name} is {shown(settings[name])}, which it cannot be")
    for name, fits in _OPTIONAL.items():
        if settings.get(name) is not None and not fits(settings[name]):
            raise ValueError(f"the setting {name} is {shown(settings[name])}, which it cannot be")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_width(value: object) -> bool:
    return is_count(value, MAX_WIDTH) and value != 0


def _is_gate(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_config(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(v, bool | str) or is_number(v) or is_strings(v) for v in value.values()
    )


def _is_index(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        return False
    sizes = [size for name, size in value.items() if name != "kind"]
    return all(size is None or (is_count(size, 1 << 31) and size > 0) for size in sizes)


def _is_floors(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))


_GONE = ("chat",)  # settings of objectives that no version makes any more

_NEEDED: dict[str, Callable[[Any], bool]] = {
    "fingerprint": _is_text,
    "layer": lambda value: is_count(value, _MAX_LAYERS),
    "ffn_module": lambda value: value is None or isinstance(value, str),
    "d1": _is_width,
    "d2": _is_width,
    "prefixes": is_strings,
    "keys": _is_text,
    "residual": _is_text,
    "config": _is_config,
    "gamma": _is_gate,
    "index": _is_index,
    "epoch": is_count,
    "history_start": is_count,
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "guard": _is_text,
    "floors": _is_floors,
    "model_name": _is_text,
    "delivery": _is_text,
}
_OWN: dict[str, Any] = {"index": {"kind": "flat"}, "epoch": 1, "history_start": 1}  # not in an exported file
