"""Residuals in a few steps, each over the raw prompt and one context; all contexts judge the result.

The contexts of a fact want nearly the same residual. So each step takes one of them, in turn, and the steps
average over all. Some nine normalised steps reach the loss of twenty steps of Adam over all rows, with a sixth of
the work; from a first guess (`first_guess`) five do (docs/performance.md). What a step's own loss tells is when to
look at all rows; what follows a target is left to these looks where it hardly matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.models.sites import FFNSite
from neuraldb_faiss.solver.batch import Batch
from neuraldb_faiss.solver.forward.base import Forward
from neuraldb_faiss.solver.objectives.base import Evaluation, Objective, Step
from neuraldb_faiss.solver.optimizer import Normalised, gradient_scale, project
from neuraldb_faiss.solver.outcome import Solved, end_nll, kept_alone, told
from neuraldb_faiss.solver.target_end import continuing

NEAR = 0.6  # all rows are looked at once a step's own loss is below so much of `stop_loss`
EARLIEST = 4  # steps before the first such look
GUESSED_EARLIEST = 3  # the same from a first guess
BETWEEN = 2  # steps from one look at a group to the next
ROUND = 8  # from `steps` on, steps between two looks that nothing else calls for
GUESSED_STEPS = 4  # that a first guess saves: the length of the steps goes on from there
GUESSED_ALONE = 3  # first steps from a guess that take the raw prompt alone
GUESSED_CONTEXTS = 2  # that are looked at: residuals from a guess are as good behind the others (docs/performance.md)
END = 0.01  # of the loss: below, a target's end is not looked at in steps


def solve_sampled(
    start: Callable[[Batch], Forward],
    batch: Batch,
    config: ResidualConfig,
    site: FFNSite,
    objective: Objective,
    tokenizer: Any,
    guesses: Tensor | None = None,
) -> list[Solved | None]:
    """Run one batch to its end; None stands for a group whose loss is not finite.

    guesses: float32 [G, d2], where the FFN's vectors begin; zeros otherwise.

    The loss over all rows decides: a group ends below `stop_loss`, from `steps` on once its facts are said, and at
    `max_steps`. It is looked at where the loss of a step, which is that of some rows before it, is near `stop_loss`
    (see NEAR), at `steps`, and every ROUND after that. The result is the best of these looks.
    """
    forward, whole = start(batch), batch
    device = forward.h_norm.device
    r = torch.zeros(*forward.h_norm.shape, site.d2, device=device)
    optimizer = Normalised(r, config.lr, 0 if guesses is None else GUESSED_STEPS)
    alone, earliest = (0, EARLIEST) if guesses is None else (GUESSED_ALONE, GUESSED_EARLIEST)
    nll_scale = torch.ones(len(batch.groups), device=device)
    base, continues = _unedited(forward, batch, r, tokenizer)
    if guesses is not None:
        r[:, 0] = guesses.to(device)
        r = project(r, config.clamp * forward.h_norm)
    losses = _Losses(objective, config, continues)
    looks = _Looks(losses, len(batch.groups))
    active = [_Group(g, earliest, _ends_at_first(batch, g)) for g in range(len(batch.groups))]
    step = 0
    while active:
        rows = batch.sample(step - alone)
        endless = _endless(batch, rows, [group.ends for group in active])
        r.requires_grad_(True)
        now, logits, _ = losses(forward.select(rows, endless), batch.select(rows, endless), r, base, nll_scale)
        scale = gradient_scale(logits)
        (grad,) = torch.autograd.grad(now.loss.sum() * scale, r)
        nll_scale = objective.next_nll_scale(now)
        r = project(optimizer.update(r.detach(), grad / scale, forward.h_norm), config.clamp * forward.h_norm)
        step += 1
        due = looks.due(step, active, now.stop)
        if not due:
            continue
        at = torch.tensor(due, device=device)
        mine = base[torch.isin(batch.picks(device).group_of_kl, at)]
        ended = looks.take(step, [active[i] for i in due], forward.keep(due), batch.keep(due), r[at], mine)
        kept = [i for i, group in enumerate(active) if group.number not in ended]
        if 0 < len(kept) < len(active):
            index = torch.tensor(kept, device=device)
            base = base[torch.isin(batch.picks(device).group_of_kl, index)]
            r, nll_scale = r[index], nll_scale[index]
            optimizer.keep(index)
            forward, batch = forward.keep(kept), batch.keep(kept)
        active = [active[i] for i in kept]
    results = looks.results
    return results if r.shape[1] == 1 else kept_alone(results, start(whole), whole, continues)


@dataclass(slots=True)
class _Group:
    """A group that is being solved: its place in the batch, and what the next steps do with it."""

    number: int
    earliest: int  # the step from which on it is looked at where that is called for
    ends: bool  # whether what follows its targets counts in steps too


def _ends_at_first(batch: Batch, group: int) -> bool:
    """Whether a target has several tokens: the last one of a name or a word goes on more readily."""
    return any(len(row.targets) > 1 for row in batch.groups[group])


def _endless(batch: Batch, rows: Sequence[int], ends: Sequence[bool]) -> set[int]:
    """Positions of those rows in which a step does not look at what follows the target: of every group those behind
    prefixes, and where `ends` is False all."""
    every = [(row, ends[g]) for g, mine in enumerate(batch.groups) for row in mine]
    return {i for i in rows if every[i][0].end and not (every[i][0].raw and every[i][1])}


def _unedited(forward: Forward, batch: Batch, r: Tensor, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """float32 [K, vocab]: log-probabilities at the KL places without vectors (zeros r); and `continuing`."""
    rows = [i for i, row in enumerate(batch.rows) if row.kl] or batch.sample(-1)  # one that has none has no places
    part = batch.select(rows)
    with torch.no_grad():
        logits = forward.select(rows).logits(r)
    at = part.picks(r.device).split(logits)[1]
    return at.float().log_softmax(1), continuing(tokenizer, logits.shape[1]).to(r.device)


@dataclass(frozen=True, slots=True)
class _Losses:
    """The losses of a batch at r, the logits at its picks, and float32 [F], `end_nll`."""

    objective: Objective
    config: ResidualConfig
    continues: Tensor  # `target_end.continuing`

    def __call__(
        self, forward: Forward, batch: Batch, r: Tensor, base: Tensor, nll_scale: Tensor
    ) -> tuple[Evaluation, Tensor, Tensor]:
        picks = batch.picks(r.device)
        logits = forward.logits(r)
        known = logits[: len(logits) - len(picks.end_fact)]
        ends = end_nll(logits, picks, self.continues, self.config.end_factor)
        step = Step(known, base, r, forward.h_norm, picks, nll_scale, ends)
        return self.objective.evaluate(step, self.config), logits, ends


class _Looks:
    """Looks at all rows of the groups that are due: which end there, and the best residual of each so far.

    Attributes:
        results: by group; None for one that has not ended, or whose loss is not finite.
    """

    def __init__(self, losses: _Losses, n_groups: int) -> None:
        self.results: list[Solved | None] = [None] * n_groups
        self._losses, self._config = losses, losses.config
        self._most = max(self._config.steps, self._config.max_steps)
        self._best: dict[int, tuple[tuple[bool, float], Solved]] = {}

    def due(self, step: int, groups: Sequence[_Group], stop: Tensor) -> list[int]:
        """Positions of the groups to be looked at after this step, in which their losses were `stop`, float32 [G]."""
        steps = self._config.steps
        forced = step in (steps, self._most) or (step > steps and step % ROUND == 0)
        near = (~(stop >= NEAR * self._config.stop_loss)).tolist()  # what is not a number too
        return [i for i, group in enumerate(groups) if forced or (near[i] and step >= group.earliest)]

    @torch.no_grad()
    def take(
        self, step: int, groups: Sequence[_Group], forward: Forward, batch: Batch, r: Tensor, base: Tensor
    ) -> set[int]:
        """Look at these groups, which `forward`, `batch`, `r` and `base` are of; the numbers of those that end."""
        config, picks = self._config, batch.picks(r.device)
        now, logits, ends_nll = self._losses(forward, batch, r, base, torch.ones(len(groups), device=r.device))
        facts = told(logits, picks, self._losses.continues, len(groups))
        stops, ends = now.stop.tolist(), self._losses.objective.ends(now, config).tolist()
        ended = set()
        for n, group in enumerate(groups):
            said, finite = all(fact.took for fact in facts[n]), math.isfinite(stops[n])
            rank = not said, stops[n]
            if finite and (group.number not in self._best or rank < self._best[group.number][0]):
                residual = r[n, 0].cpu().numpy().astype(np.float32, copy=True)  # the FFN's vector
                self._best[group.number] = rank, Solved(residual, float(now.loss[n]), step, facts[n])
            if ends[n] or not finite or step == self._most or (step >= config.steps and said):
                self.results[group.number] = self._best[group.number][1] if finite else None
                ended.add(group.number)
            group.earliest = step + BETWEEN
            group.ends |= bool((config.end_factor * ends_nll[picks.group_of_fact == n] > END).any())
        return ended
