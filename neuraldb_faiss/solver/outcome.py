"""What becomes of groups and their facts under given vectors: losses of targets' ends, outcomes, results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neuraldb_faiss.solver.batch import Batch, Picks
from neuraldb_faiss.solver.forward.base import Forward
from neuraldb_faiss.solver.optimizer import outcomes


@dataclass(frozen=True, slots=True)
class FactOutcome:
    """One fact under the final residual, on its raw prompt.

    `nll` is the mean negative log-likelihood per target token (nats), `probability` exp(-nll), `took`
    whether every target token is the arg-max, and the token that is it behind them does not continue the target's last
    word.
    """

    nll: float
    probability: float
    took: bool


@dataclass(frozen=True, slots=True)
class Solved:
    """A group's residual (float32 [d2]), its loss, the number of loss evaluations to it, and its facts' outcomes.

    Where there is a second vector, the loss is that of both, and the outcomes are those of the residual alone.
    """

    residual: np.ndarray
    loss: float
    steps: int
    facts: tuple[FactOutcome, ...]


def end_nll(logits: Tensor, picks: Picks, continues: Tensor, factor: float) -> Tensor:
    """float32 [F], `Step.end_nll`. With no factor nothing is computed: raw rows have their ends for `took` alone."""
    found = torch.zeros(len(picks.group_of_fact), device=logits.device)
    if not factor or not len(picks.end_fact):
        return found
    at = picks.split(logits)[2].float()
    ends = at.logsumexp(1) - at.masked_fill(continues, float("-inf")).logsumexp(1)
    rows = torch.bincount(picks.end_fact[picks.end_after < 0], minlength=len(found)).clamp(min=1)
    return found.index_add(0, picks.end_fact, ends) / rows


def kept_alone(
    results: Sequence[Solved | None], forward: Forward, batch: Batch, continues: Tensor
) -> list[Solved | None]:
    """The results, with the outcomes that the residuals have by themselves, without the attention's vectors."""
    d2 = next((len(one.residual) for one in results if one is not None), None)
    if d2 is None:
        return list(results)
    kept = [torch.zeros(d2) if one is None else torch.from_numpy(one.residual) for one in results]
    ffn = torch.stack(kept).to(forward.h_norm.device)
    with torch.no_grad():
        logits = forward.logits(torch.stack([ffn, torch.zeros_like(ffn)], 1))
    facts = told(logits, batch.picks(ffn.device), continues, len(results))
    return [None if one is None else replace(one, facts=told) for one, told in zip(results, facts, strict=True)]


def told(logits: Tensor, picks: Picks, continues: Tensor, n_groups: int) -> list[tuple[FactOutcome, ...]]:
    """Each group's, from the logits [N + K + E, vocab] at `picks`."""
    nll, took = (values.tolist() for values in outcomes(logits, picks, continues))
    found: list[list[FactOutcome]] = [[] for _ in range(n_groups)]
    for group, n, t in zip(picks.group_of_fact.tolist(), nll, took, strict=True):
        found[group].append(FactOutcome(n, math.exp(-n), t))
    return [tuple(one) for one in found]
