"""Named arguments of the public functions, with their types and defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from neuraldb_faiss.config import IndexConfig

if TYPE_CHECKING:
    from neuraldb_faiss.edits.pipeline import Report

WAIT = 10.0  # seconds to wait for another writer, where nobody says otherwise

_OBJECTIVE = (
    "steps", "max_steps", "lr", "weight_decay", "clamp", "kl_factor", "stop_loss", "kl_prompts", "end_factor",
    "optimizer",
)  # fmt: skip


def check_names(options: Mapping[str, Any], known: type) -> None:
    """Raises TypeError, as Python does, for a named argument that the TypedDict `known` does not have."""
    names = known.__annotations__
    if unknown := [name for name in options if name not in names]:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}: there are {', '.join(sorted(names))}")


@dataclass(frozen=True)
class BuildConfig:
    """How the keys and residuals of a new database are made. None stands for the model's or the kind's default.

    Attributes:
        layer: the FFN to edit; a known model's default else (`edit_defaults`).
        residual: "memit" (eq. 21), "pmet" (its objective has a second vector, at the attention, that is not kept),
            "answer" (for where the answer to a prompt begins, in a chat too), or "none" (zeros: for measuring gates and
            lookups).
        keys: "two" a fact (raw, and mean behind prefixes), or the "paper"'s one average (eq. 20).
        guard: "subject" (a fact fires only where the text ends with its subject), "whole-words" (and no word goes on
            there, as far as the prompt tells), "none" (the paper's plain gate), or "answer" (a fact fires where the
            answer to a prompt that asks for it begins). By default "answer" for that residual, "subject" for others.
        gamma: the gate, a cosine; the guard's own default otherwise.
        ffn_module: the down-projection's name with {} for the layer, where it is not found by itself.
        seed: of the context prefixes.
        index: how the keys are searched: an `IndexConfig`, or a mapping of `kind` and the kind's options. Flat by
            default.
        delivery: how facts reach a request unless it says otherwise: "residual" (the hook adds residuals), "text"
            (their statements go into the prompt), "both", or "auto" (what measured best for its kind).
        steps, max_steps, lr, weight_decay, clamp, kl_factor, stop_loss, kl_prompts, end_factor, optimizer: of the
            residual's objective (`ResidualConfig`).
    """

    layer: int | None = None
    residual: str = "memit"
    keys: str = "two"
    guard: str | None = None
    gamma: float | None = None
    ffn_module: str | None = None
    seed: int = 0
    index: IndexConfig | Mapping[str, Any] | None = None
    delivery: str = "auto"
    steps: int | None = None
    max_steps: int | None = None
    lr: float | None = None
    weight_decay: float | None = None
    clamp: float | None = None
    kl_factor: float | None = None
    stop_loss: float | None = None
    kl_prompts: Sequence[str] | None = None
    end_factor: float | None = None
    optimizer: str | None = None

    @classmethod
    def of(cls, config: BuildConfig | None, options: BuildOptions) -> BuildConfig:
        """`config` (the defaults: None) with these fields replaced; one that is None stays as it is."""
        given = {name: value for name, value in options.items() if value is not None}
        return replace(config or cls(), **given)  # type: ignore[arg-type]

    def search(self) -> IndexConfig:
        """`index` as an IndexConfig."""
        if isinstance(self.index, IndexConfig) or self.index is None:
            return self.index or IndexConfig()
        return IndexConfig.from_json({"kind": "flat", **self.index})

    def objective(self) -> dict[str, Any]:
        """The settings of the objective that are given."""
        return {name: value for name in _OBJECTIVE if (value := getattr(self, name)) is not None}


class BuildOptions(TypedDict, total=False):
    """The fields of BuildConfig as named arguments."""

    layer: int | None
    residual: str
    keys: str
    guard: str | None
    gamma: float | None
    ffn_module: str | None
    seed: int
    index: IndexConfig | Mapping[str, Any] | None
    delivery: str
    steps: int | None
    max_steps: int | None
    lr: float | None
    weight_decay: float | None
    clamp: float | None
    kl_factor: float | None
    stop_loss: float | None
    kl_prompts: Sequence[str] | None
    end_factor: float | None
    optimizer: str | None


class CreateOptions(BuildOptions, total=False):
    """Named arguments of `build`: the fields of BuildConfig, and these.

    Attributes:
        on_conflict: "error", "first" or "last" where two targets are given for one subject and prompt.
        drop_failed: leave out facts whose target is not the arg-max after solving.
        report: called with a `Progress` at the beginning, and whenever some facts are solved.
        command: what the history calls this.
    """

    on_conflict: str
    drop_failed: bool
    report: Report | None
    command: str


class RayOptions(CreateOptions, total=False):
    """More named arguments of `build_on_ray`.

    Attributes:
        device: None for one GPU a worker where the cluster has any; cpu, or cuda.
        dtype: of the weights, see `load_model`.
    """

    device: str | None
    dtype: str | None


class WriteOptions(TypedDict, total=False):
    """Named arguments of every change.

    Attributes:
        report: called with a `Progress` at the beginning, and whenever some facts are solved.
        command: what the history calls this.
        wait: seconds to wait for another writer; 10 by default.
    """

    report: Report | None
    command: str
    wait: float


class JoinOptions(WriteOptions, total=False):
    """More named arguments of what brings facts of several databases together.

    Attributes:
        model, tokenizer: to solve facts jointly that share a key; without, they wait for `solve`.
    """

    model: Any
    tokenizer: Any


class MergeOptions(JoinOptions, total=False):
    """More named arguments of `merge`.

    Attributes:
        link: hard-link the arrays instead of copying them.
    """

    link: bool


class FactFilter(TypedDict, total=False):
    """Which facts are meant; all that is given must hold.

    Attributes:
        ids: one of these. subject: this one, in any case and spacing. contains: a text in subject, prompt or target.
        source: one of the fact's sources. entry: served by this one.
        failed: whether only facts whose target is not the arg-max. waiting: whether only facts to be solved.
        limit: at most this many, the first ones.
        identities: of one of these (`Fact.identity`). every_row: a fact of several entries once for each of them.
    """

    ids: Sequence[str] | None
    subject: str | None
    contains: str | None
    source: str | None
    entry: int | None
    failed: bool
    waiting: bool
    limit: int | None
    identities: Sequence[str] | None
    every_row: bool
