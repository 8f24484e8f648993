"""Adam whose rows can be dropped on the way, the bound on a vector's norm, and outcomes of facts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuraldb_faiss.solver.batch import Picks


@torch.no_grad()
def outcomes(logits: Tensor, picks: Picks, continues: Tensor) -> tuple[Tensor, Tensor]:
    """What becomes of each fact on its raw row: the mean NLL per target token, float32 [F], and whether every
    target token is the arg-max and what is it behind them does not continue the target's last word, bool [F].

    logits: [N + K + E, vocab] at `picks`. continues: bool [vocab], `target_end.continuing`.
    """
    raw, n_facts = picks.raw, len(picks.group_of_fact)
    at = logits[: len(raw)][raw].float()
    target, fact = picks.target[raw], picks.fact[raw]
    nll = F.cross_entropy(at, target, reduction="none")
    tokens = torch.bincount(fact, minlength=n_facts)
    missed = torch.bincount(fact[at.argmax(1) != target], minlength=n_facts)
    said, after = picks.split(logits)[2][picks.end_raw].argmax(1), picks.end_after[picks.end_raw]
    longer = continues[said] & ((after < 0) | (after == said.roll(1)))  # behind "." only where "." is said
    missed += torch.bincount(picks.end_fact[picks.end_raw][longer], minlength=n_facts)
    return nll.new_zeros(n_facts).index_add(0, fact, nll) / tokens, missed == 0


# float16 gradients underflow below 6e-8; the loss is scaled up by this before, and the gradient down after.
_HALF_SCALE = 1024.0


def gradient_scale(logits: Tensor) -> float:
    """What the loss is multiplied by before its gradient is taken."""
    return _HALF_SCALE if logits.dtype == torch.float16 else 1.0


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


class Normalised:
    """Steps of a given length along the mean of recent gradients, each brought to length one.

    A loss of logarithms has gradients that differ a hundredfold on the way; only their direction is used. The k-th step
    is lr * (0.75^(k-1) + 1/12) * ||h_init|| long; `taken` steps before the first have shortened it already.
    """

    def __init__(self, like: Tensor, lr: float, taken: int = 0) -> None:
        self._lr = lr
        self._step = taken
        self._mean = torch.zeros_like(like)

    def update(self, r: Tensor, grad: Tensor, h_norm: Tensor) -> Tensor:
        """r after one step; r and grad float32 [G, S, d2], h_norm float32 [G, S]."""
        self._mean = _MOMENTUM * self._mean + (1 - _MOMENTUM) * unit(grad)
        length = self._lr * (_SHRINK**self._step + _LEAST)
        self._step += 1
        return r - length * h_norm[..., None] * unit(self._mean)

    def keep(self, index: Tensor) -> None:
        """Drop the state of all rows but `index`."""
        self._mean = self._mean.index_select(0, index)


_MOMENTUM = 0.5
_SHRINK = 0.75
_LEAST = 1 / 12


def unit(vectors: Tensor) -> Tensor:
    """Each of the vectors [..., d2] at length one; zeros stay zeros."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)


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
