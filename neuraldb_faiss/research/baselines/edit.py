"""Facts written into a model's weights for a while, by any of the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.edits.pipeline import Report
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import find_site
from neuraldb_faiss.models.sites import unwrap
from neuraldb_faiss.research.baselines import ft, rome
from neuraldb_faiss.research.baselines.defaults import default_settings
from neuraldb_faiss.research.baselines.residuals import UNEDITED, Residuals, after
from neuraldb_faiss.research.baselines.settings import BATCHED, LENT, Ft, Solving, check_method, with_changes
from neuraldb_faiss.research.baselines.spread import AlphaEditSpread, PmetSpread, RectSpread, Spread
from neuraldb_faiss.research.baselines.statistics import Statistics, as_statistics
from neuraldb_faiss.research.baselines.weights import Weights, copied
from neuraldb_faiss.solver.editor import Editor

SOLVE_ON = ("edited", "base")


@dataclass(frozen=True)
class Edit:
    """What was written into a model.

    Attributes:
        method, facts, batch: one of METHODS, how many facts, and the facts a batch (None: all in one step).
        settings: JSON values that repeat the edit: the method's settings, prefixes, solve_on, and the hash of
            every C0 used.
        losses: of each fact's residual, in the facts' order, none where they were given; FT: the mean loss of each
            round.
    """

    method: str
    facts: int
    batch: int | None
    settings: Mapping[str, Any]
    losses: tuple[float, ...]
    _weights: Weights

    @property
    def layers(self) -> tuple[int, ...]:
        return self._weights.layers

    def delta(self, layer: int) -> Tensor:
        """What the layer's W_out differs by from the unedited one, while the edit is in place: float32 [d2, d1]."""
        return self._weights.delta(layer)


@contextmanager
def edited(
    name: str,
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    batch: int | None = None,
    statistics: Statistics | str | Path | None = None,
    layers: Sequence[int] | None = None,
    cache: str | Path | None = None,
    solve_on: str = "edited",
    given: np.ndarray | None = None,
    report: Report | None = None,
    **hyperparameters: Any,
) -> Iterator[Edit]:
    """`model` with all `facts` written into its weights; on leaving, every weight is bit for bit what it was.

    Args:
        name: one of METHODS.
        batch: write so many facts at a time, one batch after the other; None writes all in one step. ROME always
            writes one fact at a time, FT always all.
        statistics: where C0 is (a folder that `make_statistics` or `neuraldb statistics` filled); None for the
            folder "statistics". FT needs none.
        layers: which layers to edit, instead of the method's own.
        cache: a folder that keeps solved residuals, for other methods and for the next run; None keeps none.
        solve_on: "edited" solves a batch's residuals on the model that holds the batches before it, as the
            reference codes do; "base" solves all of them on the unedited model, so that all batchings share them.
        given: float32 [len(facts), d2], residuals of the last layer that MEMIT, AlphaEdit and RECT write in place of
            solved ones: a database's, say, whose layer that is.
        report: progress, in facts whose residual is solved.
        hyperparameters: fields of the method's settings (`neuraldb_faiss.research.baselines.settings`).

    Raises:
        BuildError: unknown method or setting, a value out of range, no facts, statistics that are missing, a model
            that the method does not serve, a loss that is not finite.
        ModelError: no such layer, or weights that cannot be edited.
    """
    model = unwrap(model)
    check_method(name)
    facts = list(facts)
    _check(name, facts, batch, solve_on, given)
    settings = with_changes(name, default_settings(name, model), {"layers": layers, **hyperparameters})
    sites = [find_site(model, layer) for layer in settings.layers]
    with copied(sites) as weights:
        if isinstance(settings, Ft):
            told, losses = asdict(settings), ft.write(model, tokenizer, sites[0], weights, facts, settings, report)
        else:
            assert isinstance(settings, Solving)
            moments = as_statistics(statistics).moments(model, sites)
            editor = _editor(name, model, tokenizer, settings)
            told = {
                **asdict(settings),
                "solve_on": solve_on if given is None else "given",
                "prefixes": list(editor.prefixes),
                "c0": {str(layer): moment.sha256 for layer, moment in moments.items()},
            }
            residuals = Residuals(editor, cache, len(facts), report)
            if name == "rome":
                rome.write(editor, weights, moments[editor.site.layer], facts, residuals)
            else:
                _write_batches(
                    _SPREADS[name](editor, sites, weights, moments, settings),
                    residuals,
                    facts,
                    batch or len(facts),
                    solve_on,
                    [name, told],
                    given,
                )
            losses = residuals.losses
        yield Edit(name, len(facts), batch, {**told, "layers": list(settings.layers)}, tuple(losses), weights)


_SPREADS: dict[str, Callable[..., Spread]] = {
    "memit": Spread,
    "alphaedit": AlphaEditSpread,
    "rect": RectSpread,
    "pmet": PmetSpread,
}


def _check(name: str, facts: Sequence[Fact], batch: int | None, solve_on: str, given: np.ndarray | None) -> None:
    if not facts:
        raise BuildError(f"{name} was given no facts to write")
    if solve_on not in SOLVE_ON:
        raise BuildError(f"solve_on is {solve_on!r}: it must be one of {', '.join(SOLVE_ON)}")
    if name not in BATCHED and (batch is not None or solve_on != "edited"):
        raise BuildError(f"{name} knows no batches of facts: leave batch and solve_on out")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise BuildError(f"batch is {batch!r}: it must be a whole number of at least 1, or None for all at once")
    if given is not None and name not in LENT:
        raise BuildError(f"{name} solves its residuals itself: {', '.join(LENT)} write given ones")
    if given is not None and len(given) != len(facts):
        raise BuildError(f"{len(given)} residuals are given for {len(facts)} facts")


def _editor(name: str, model: Any, tokenizer: Any, settings: Solving) -> Editor:
    """What makes the keys and residuals of the last layer."""
    return Editor.new(
        model,
        tokenizer,
        layer=settings.layers[-1],
        residual="pmet" if name == "pmet" else "memit",
        keys="paper",
        **{field: getattr(settings, field) for field in _SOLVER_FIELDS},
    )


_SOLVER_FIELDS = ("steps", "lr", "weight_decay", "clamp", "kl_factor", "stop_loss", "optimizer")


def _write_batches(
    spread: Spread, residuals: Residuals, facts: Sequence[Fact], size: int, solve_on: str, told: list[Any],
    given: np.ndarray | None,
) -> None:  # fmt: skip
    def targets(some: Sequence[Fact]) -> Tensor:
        return spread.values(some) + torch.from_numpy(residuals.of(some, state))

    spread.check(facts[0])
    state = UNEDITED
    fixed = None
    if given is not None:
        fixed = spread.values(facts) + torch.from_numpy(given)
    elif solve_on == "base":
        fixed = targets(facts)
    for start in range(0, len(facts), size):
        some = facts[start : start + size]
        spread.write(some, targets(some) if fixed is None else fixed[start : start + size])
        state = after(state, told, [[fact.text, fact.target] for fact in some])
