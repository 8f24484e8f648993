"""What each method can be told, and its checks. Imports nothing heavy: a command line lists METHODS from here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from neuraldb_faiss.config import OPTIMIZERS, SAMPLED
from neuraldb_faiss.errors import BuildError, did_you_mean

METHODS = ("memit", "alphaedit", "rect", "pmet", "rome", "ft")
BATCHED = ("memit", "alphaedit", "rect", "pmet")  # the others know no batches of facts
# Those that take eq. 21's residual at their last layer, as a database does, and so can write a database's.
LENT = ("memit", "alphaedit", "rect")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Layers whose down-projection is edited, ascending, from 0."""

    layers: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Solving(Settings):
    """Settings of the residual at the last of the layers; see `neuraldb_faiss.solver.ResidualConfig`.

    The reference codes use Adam; MEMIT, RECT and AlphaEdit may take the optimizer "sampled", with its own steps, lr and
    stop_loss.
    """

    steps: int
    lr: float
    weight_decay: float
    clamp: float
    kl_factor: float
    stop_loss: float = 0.05
    optimizer: str = "adam"


@dataclass(frozen=True, kw_only=True)
class Memit(Solving):
    """`c0_weight`: λ, the weight of the second moment C0 of preserved keys."""

    c0_weight: float


@dataclass(frozen=True, kw_only=True)
class Pmet(Memit):
    """As MEMIT; steps, lr and the rest are those of PMET's own objective."""


@dataclass(frozen=True, kw_only=True)
class Rect(Memit):
    """`keep`: share of the entries of MEMIT's Δ that is kept, those with the largest |ΔW / W|."""

    keep: float = 0.4


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(Solving):
    """`null_threshold`: eigenvectors of C0 below it may be written to. `l2`: weight of the identity."""

    null_threshold: float = 2e-2
    l2: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Rome(Solving):
    """One layer. `clamp` and `weight_decay` are relative to the FFN's output, as in ROME, not to the layer's."""


@dataclass(frozen=True, kw_only=True)
class Ft(Settings):
    """One layer. Adam over its W_out: `steps` rounds over all facts, `bound` on every entry's change (L∞), facts in
    one step of Adam (`batch_size`), and the mean loss at which it ends."""

    steps: int = 25
    lr: float = 5e-4
    bound: float = 5e-4
    batch_size: int = 64
    stop_loss: float = 1e-2


KINDS: dict[str, type[Settings]] = {
    "memit": Memit,
    "alphaedit": AlphaEdit,
    "rect": Rect,
    "pmet": Pmet,
    "rome": Rome,
    "ft": Ft,
}
_SAMPLING = ("memit", "alphaedit", "rect")
_POSITIVE = ("lr", "clamp", "c0_weight", "null_threshold", "l2", "bound")
_AT_LEAST_0 = ("weight_decay", "kl_factor", "stop_loss")
_WHOLE = ("steps", "batch_size")


def check_method(name: str) -> None:
    """Raises BuildError for a name that is not in METHODS."""
    if name not in METHODS:
        raise BuildError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")


def with_changes(name: str, settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """`settings` of the method `name` with some fields set anew; those given as None stay.

    Raises:
        BuildError: a field the method does not have, or a value out of range.
    """
    known = [field.name for field in fields(settings)]
    given = {field: value for field, value in changes.items() if value is not None}
    if unknown := sorted(set(given) - set(known)):
        hint = did_you_mean(unknown[0], known)
        raise BuildError(f"{name} has no setting {unknown[0]!r}: it has {', '.join(known)}.{hint}")
    if given.get("optimizer") == "sampled":
        given = {**SAMPLED, **given}
    if "layers" in given:
        given["layers"] = tuple(sorted(set(given["layers"])))
    changed = replace(settings, **given)
    _check(name, changed)
    return changed


def _check(name: str, settings: Settings) -> None:
    for field, value in asdict(settings).items():
        if field == "layers":
            if not value:
                raise BuildError(f"{name} needs at least one layer")
            if name in ("rome", "ft") and len(value) > 1:
                raise BuildError(f"{name} edits one layer, not {', '.join(map(str, value))}: name one")
        elif field == "optimizer":
            known = OPTIMIZERS if name in _SAMPLING else ("adam",)
            if value not in known:
                raise BuildError(f"optimizer of {name} is {value!r}: it must be one of {', '.join(known)}")
        elif field in _WHOLE:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BuildError(f"{field} of {name} is {value!r}: it must be a whole number of at least 1")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BuildError(f"{field} of {name} is {value!r}: it must be a number")
        elif field in _POSITIVE and value <= 0:
            raise BuildError(f"{field} of {name} is {value}: it must be above 0")
        elif field in _AT_LEAST_0 and value < 0:
            raise BuildError(f"{field} of {name} is {value}: it must not be negative")
        elif field == "keep" and not 0 < value <= 1:
            raise BuildError(f"keep of {name} is {value}: it is a share, above 0 and at most 1")
