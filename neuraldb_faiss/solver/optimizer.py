"""The objective of equation 21 over a batch of groups, and Adam that can drop groups on the way.

A group has S vectors: one for MEMIT's residual (added to the FFN's output), two for PMET's (see `pmet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.solver.batch import Picks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Losses of G groups."""

    loss: Tensor  # float32 [G], differentiable
    stop: Tensor  # float32 [G]: the loss with the largest fact's NLL in place of the mean one
    kl: Tensor  # float32 [G]
    hit: Tensor  # bool [G]: every target token of every row is the arg-max


def evaluate(
    logits: Tensor,
    base: Tensor,
    r: Tensor,
    h_norm: Tensor,
    picks: Picks,
    config: ResidualConfig,
    nll_scale: Tensor,
) -> Evaluation:
    """Equation 21 from the logits [N + K, vocab] at `picks`.

    `base` [K, vocab] are the unedited log-probabilities at the KL places, `r` float32 [G, S, d2], `h_norm`
    float32 [G, S], `nll_scale` float32 [G] a factor on the NLL term. The divergence is KL(edited || base), the
    weight decay that of all S vectors. Everything is computed in float32.
    """
    n, n_facts = len(picks.target), len(picks.group_of_fact)
    logits = logits.float()
    nll = F.cross_entropy(logits[:n], picks.target, reduction="none")
    fact_nll = nll.new_zeros(n_facts).index_add(0, picks.fact, nll * picks.share)
    n_groups = len(r)
    mean_nll = group_mean(fact_nll, picks.group_of_fact, n_groups)
    edited = F.log_softmax(logits[n:], dim=1)
    kl = group_mean((edited.exp() * (edited - base)).sum(1), picks.group_of_kl, n_groups)
    decay = (r.norm(dim=2) / h_norm.square()).sum(1)
    rest = config.kl_factor * kl + config.weight_decay * decay
    with torch.no_grad():
        worst = fact_nll.new_full((n_groups,), float("-inf"))
        worst = worst.scatter_reduce(0, picks.group_of_fact, fact_nll, "amax")
        wrong = logits[:n].argmax(1) != picks.target
        missed = torch.bincount(picks.group_of_fact[picks.fact[wrong]], minlength=n_groups)
        stop = nll_scale * worst + rest
    return Evaluation(nll_scale * mean_nll + rest, stop, kl.detach(), missed == 0)


def group_mean(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """float32 [n_groups]: the mean of each group's `values` [n]; `group` int64 [n] names every group."""
    total = values.new_zeros(n_groups).index_add(0, group, values)
    return total / torch.bincount(group, minlength=n_groups)


@torch.no_grad()
def outcomes(logits: Tensor, picks: Picks) -> tuple[Tensor, Tensor]:
    """What becomes of each fact on its raw row: the mean NLL per target token, float32 [F], and whether every
    target token is the arg-max, bool [F]."""
    raw, n_facts = picks.raw, len(picks.group_of_fact)
    at = logits[: len(raw)][raw].float()
    target, fact = picks.target[raw], picks.fact[raw]
    nll = F.cross_entropy(at, target, reduction="none")
    tokens = torch.bincount(fact, minlength=n_facts)
    missed = torch.bincount(fact[at.argmax(1) != target], minlength=n_facts)
    return nll.new_zeros(n_facts).index_add(0, fact, nll) / tokens, missed == 0


class Adam:
    """torch.optim.Adam's update (betas 0.9 and 0.999, eps 1e-8) on rows whose state can be dropped."""

    def __init__(self, like: Tensor, lr: float) -> None:
        self._lr = lr
        self._step = 0
        self._mean = torch.zeros_like(like)
        self._square = torch.zeros_like(like)

    def update(self, r: Tensor, grad: Tensor) -> Tensor:
        """r after one step along `grad`; both float32 [G, S, d2]. `r` itself is left as it is."""
        self._step += 1
        self._mean.lerp_(grad, 0.1)
        self._square.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
        size = self._lr / (1 - 0.9**self._step)
        denominator = (self._square.sqrt() / (1 - 0.999**self._step) ** 0.5).add_(1e-8)
        return torch.addcdiv(r, self._mean, denominator, value=-size)

    def keep(self, index: Tensor) -> None:
        """Drop the state of all rows but `index`."""
        self._mean = self._mean.index_select(0, index)
        self._square = self._square.index_select(0, index)


def project(r: Tensor, limit: Tensor) -> Tensor:
    """Each vector of r [..., d2] scaled down to a norm of at most `limit` [...]."""
    norm = r.norm(dim=-1, keepdim=True)
    limit = limit[..., None]
    return torch.where(norm > limit, r * (limit / norm), r)


def h_init_norm(hidden: Tensor, rows: Sequence[tuple[int, bool, int]]) -> float:
    """||h_init|| of one group from `hidden` [rows, d2], the output of block l* (for PMET, of a sublayer) at each
    row's subject's last token.

    `rows` gives (index into hidden, raw, subject's last token) of the group's fact rows. h_init is the raw
    row's vector; where that stands at position 0, the mean over the other rows, because the first token's norm is
    some nine times any other's.
    """
    raw = next((index, last) for index, is_raw, last in rows if is_raw)
    others = [index for index, is_raw, _ in rows if not is_raw]
    if raw[1] > 0 or not others:
        return float(hidden[raw[0]].float().norm())
    return float(hidden[others].float().mean(0).norm())
