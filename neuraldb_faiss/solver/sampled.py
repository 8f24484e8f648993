"""Residuals in a few steps, each over the raw prompt and one context; all contexts judge the result.

The contexts of a fact want nearly the same residual. So each step takes one of them, in turn, and the steps
average over all. Eight normalised steps reach a lower loss than twenty steps of Adam over all rows, with a sixth of
the work; from a first guess (`first_guess`) four do (docs/performance.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
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

ROUND = 8  # steps between two looks at all rows
GUESSED_ROUND = 4  # the same from a first guess
GUESSED_STEPS = 4  # that a first guess saves: the length of the steps goes on from there
GUESSED_ALONE = 3  # first steps from a guess that take the raw prompt alone
GUESSED_CONTEXTS = 2  # that are looked at: residuals from a guess are as good behind the others (docs/performance.md)


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

    Every ROUND steps (GUESSED_ROUND from a guess), and after `steps`, the loss over all rows decides: a group ends
    below `stop_loss`, from `steps` on once its facts are said, and at `max_steps`. Its result is the best of these
    looks.
    """
    forward, whole = start(batch), batch
    device = forward.h_norm.device
    r = torch.zeros(*forward.h_norm.shape, site.d2, device=device)
    optimizer = Normalised(r, config.lr, 0 if guesses is None else GUESSED_STEPS)
    pace, alone = (ROUND, 0) if guesses is None else (GUESSED_ROUND, GUESSED_ALONE)
    nll_scale = torch.ones(len(batch.groups), device=device)
    base, continues = _unedited(forward, batch, r, tokenizer)
    if guesses is not None:
        r[:, 0] = guesses.to(device)
        r = project(r, config.clamp * forward.h_norm)
    losses = _Losses(objective, config, continues)
    results: list[Solved | None] = [None] * len(batch.groups)
    best: dict[int, tuple[tuple[bool, float], Solved]] = {}
    active = list(range(len(batch.groups)))
    most = max(config.steps, config.max_steps)
    step = 0
    while active:
        for _ in range(_until_look(step, pace, config.steps, most)):
            rows = batch.sample(step - alone)
            r.requires_grad_(True)
            now, logits = losses(forward.select(rows), batch.select(rows), r, base, nll_scale)
            scale = gradient_scale(logits)
            (grad,) = torch.autograd.grad(now.loss.sum() * scale, r)
            nll_scale = objective.next_nll_scale(now)
            r = project(optimizer.update(r.detach(), grad / scale, forward.h_norm), config.clamp * forward.h_norm)
            step += 1
        with torch.no_grad():
            one = torch.ones_like(nll_scale)
            now, logits = losses(forward, batch, r, base, one)
        facts = told(logits, batch.picks(device), continues, len(active))
        kept = []
        for i, (stop, ends) in enumerate(zip(now.stop.tolist(), objective.ends(now, config).tolist(), strict=True)):
            said = all(fact.took for fact in facts[i])
            rank = not said, stop
            if math.isfinite(stop) and (active[i] not in best or rank < best[active[i]][0]):
                residual = r[i, 0].cpu().numpy().astype(np.float32, copy=True)  # the FFN's vector
                best[active[i]] = rank, Solved(residual, float(now.loss[i]), step, facts[i])
            if ends or not math.isfinite(stop) or step == most or (step >= config.steps and said):
                results[active[i]] = best[active[i]][1] if math.isfinite(stop) else None
            else:
                kept.append(i)
        if 0 < len(kept) < len(active):
            index = torch.tensor(kept, device=device)
            base = base[torch.isin(batch.picks(device).group_of_kl, index)]
            r, nll_scale = r[index], nll_scale[index]
            optimizer.keep(index)
            forward.keep(kept)
            batch = batch.keep(kept)
        active = [active[i] for i in kept]
    return results if r.shape[1] == 1 else kept_alone(results, start(whole), whole, continues)


def _until_look(step: int, pace: int, steps: int, most: int) -> int:
    """Steps from here to where all rows are looked at next."""
    ends = (step - step % pace + pace, steps, most)
    return min(end for end in ends if end > step) - step


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
    """The losses of a batch at r, and the logits at its picks."""

    objective: Objective
    config: ResidualConfig
    continues: Tensor  # `target_end.continuing`

    def __call__(
        self, forward: Forward, batch: Batch, r: Tensor, base: Tensor, nll_scale: Tensor
    ) -> tuple[Evaluation, Tensor]:
        picks = batch.picks(r.device)
        logits = forward.logits(r)
        known = logits[: len(logits) - len(picks.end_fact)]
        ends = end_nll(logits, picks, self.continues, self.config.end_factor)
        step = Step(known, base, r, forward.h_norm, picks, nll_scale, ends)
        return self.objective.evaluate(step, self.config), logits
