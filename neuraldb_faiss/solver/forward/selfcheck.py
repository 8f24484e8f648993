"""Checks on the model in use before a solve relies on it: its gradients, and the fast forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuraldb_faiss.solver.forward.base import Forward, FullForward

_STEP = 0.2  # of the vectors' length, wide enough to stand above a half-precision model's rounding
_GRADIENT_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Plain:
    """What whole forward passes give: logits without vectors and with random ones r float32 [G, S, d2], and the
    gradient at r of a distance in which every place counts alike."""

    r: Tensor
    base: Tensor  # float32 [N + K + E, vocab]
    logits: Tensor  # float32 [N + K + E, vocab]
    weights: Tensor  # float32 [N + K + E]
    slope: Tensor  # float32 [G, S, d2]
    h_norm: Tensor  # float32 [G, S]


def measure(full: FullForward, r: Tensor) -> Plain:
    """The plain way's results. Raises RuntimeError where an operation has no gradient at all."""
    with torch.no_grad():
        base = full.logits(torch.zeros_like(r)).float()
        logits = full.logits(r).float()
        # The subject's own place changes most, for nothing stands between; the later ones are what matters.
        change = (logits - base).square().sum(1)
        weights = change.mean() / change.clamp(min=0.01 * float(change.max()))
    return Plain(r.detach(), base, logits, weights, _with_slope(full, r, base, weights)[1], full.h_norm)


def is_quantised(model: torch.nn.Module) -> bool:
    """Whether some weights are not plain floating-point tensors: only then can a gradient be silently wrong."""
    return bool(getattr(model, "is_quantized", False)) or any(
        not weight.is_floating_point() or type(weight.data) is not Tensor for weight in model.parameters()
    )


def has_gradient(full: FullForward, plain: Plain) -> bool:
    """Whether the gradient says what a step along r does.

    Some quantised layers round what they are given, or come without a backward pass: their gradient is zero, or
    silently lacks what went through them, and residuals solved with it would be worth nothing.
    """
    with torch.no_grad():
        longer, shorter = (
            _distance(full.logits(plain.r * factor).float(), plain.base, plain.weights)
            for factor in (1 + _STEP, 1 - _STEP)
        )
    wanted = float(longer - shorter) / (2 * _STEP)
    return abs(float((plain.slope * plain.r).sum()) - wanted) <= _GRADIENT_SHARE * abs(wanted)


def agrees(fast: Forward, plain: Plain, dtype: torch.dtype) -> bool:
    """Whether the fast pass gives what the plain one gives.

    What counts is the change that the vectors make: the logits, and their gradient, may differ by 2 % of it in
    float32, by 30 % in half precision (where rounding alone makes several per cent), and the norms that scale the
    objective by 1 %.
    """
    with torch.no_grad():
        fast.logits(torch.zeros_like(plain.r))  # a cache that a pass changes would show in the next one
    logits, slope = _with_slope(fast, plain.r, plain.base, plain.weights)
    share = 0.02 if dtype == torch.float32 else 0.3
    same_scale = torch.allclose(fast.h_norm, plain.h_norm, rtol=1e-2)
    same_slope = bool((slope - plain.slope).norm() <= share * plain.slope.norm())
    change = (plain.logits - plain.base).norm()
    return same_scale and same_slope and bool((logits - plain.logits).norm() <= share * change)


def _with_slope(forward: Forward, r: Tensor, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    r = r.detach().requires_grad_(True)
    logits = forward.logits(r).float()
    (slope,) = torch.autograd.grad(_distance(logits, base, weights), r)
    return logits.detach(), slope


def _distance(logits: Tensor, base: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the places' squared distances."""
    return ((logits - base).square().sum(1) * weights).mean()
