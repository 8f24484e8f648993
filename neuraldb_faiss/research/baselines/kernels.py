"""The linear editors as one formula: Δ = R1 K1ᵀ S, which differ in the kernel S (NeuralDB paper, eqs. 6-10).

Written into W, an edit adds to the output of key k the residuals weighted by ω = K1ᵀ S k: a lookup of the same
database in which every fact answers a little to every key. Keys are used as they are, not normalised. Everything is
solved in float64. Rows are facts: keys [m, d1] holds K1ᵀ, residuals [m, d2] holds R1ᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from neuraldb_faiss.errors import BuildError

_SOLVED = 1e-4  # largest relative error of a solution that is taken for one
_SINGULAR = (
    "the linear system of this layer's edit is singular: the statistics C0 were taken from too little text "
    "(`neuraldb statistics` with more --tokens, several times the FFN's width)"
)


@dataclass(frozen=True, slots=True)
class Kernel:
    """`rows` = K1ᵀ S, float64 [m, d1]: all that Δ and ω need of a kernel."""

    rows: Tensor

    def delta(self, residuals: Tensor) -> Tensor:
        """Δ = R1 K1ᵀ S, float64 [d2, d1], from residuals [m, d2]."""
        return residuals.to(self.rows).T @ self.rows

    def omega(self, keys: Tensor) -> Tensor:
        """ω = K1ᵀ S k for each of `keys` [n, d1]: float64 [n, m], the weight of every fact's residual."""
        return keys.to(self.rows) @ self.rows.T


def memit(keys: Tensor, moment: Tensor, weight: float) -> Kernel:
    """MEMIT (arXiv 2210.07229): S = (K1 K1ᵀ + λ C0)⁻¹.

    Args:
        keys: [m, d1]. moment: C0 [d1, d1]. weight: λ.

    Raises:
        BuildError: λ C0 + K1 K1ᵀ is singular (C0 of too little text).
    """
    wide = keys.to(moment.device, torch.float64)
    return Kernel(_solve(weight * moment + wide.T @ wide, wide.T).T)


class RankOne:
    """ROME (arXiv 2202.05262), one fact a row: S = C0⁻¹ / (kᵀ C0⁻¹ k), so that Δ k = r exactly.

    For one fact MEMIT's is this, scaled by kᵀ C0⁻¹ k / (λ + kᵀ C0⁻¹ k).
    """

    def __init__(self, moment: Tensor) -> None:
        """Raises BuildError where C0, float64 [d1, d1], is singular."""
        self._moment, self._factor = moment, _factor(moment)

    def kernel(self, keys: Tensor) -> Kernel:
        """Of `keys` [m, d1], each row as if it were alone."""
        wide = keys.to(self._moment)
        solved = _solve(self._moment, wide.T, self._factor).T
        return Kernel(solved / (solved * wide).sum(1, keepdim=True))


class NullSpace:
    """AlphaEdit (arXiv 2410.02355): S = P (Kp Kpᵀ P + K1 K1ᵀ P + L2 I)⁻¹, with Kp the keys of earlier batches.

    P = U Uᵀ over the eigenvectors of C0 = K0 K0ᵀ / n whose singular value is below a threshold. Solved in the
    space that U spans: S = U (Uᵀ(Kp Kpᵀ + K1 K1ᵀ)U + L2 I)⁻¹ Uᵀ is the same matrix, symmetric and smaller.
    """

    def __init__(self, moment: Tensor, threshold: float, l2: float) -> None:
        """Raises BuildError where no singular value of `moment` [d1, d1] is below `threshold`."""
        values, vectors = torch.linalg.eigh(moment.double())
        free = values.abs() < threshold
        if not free.any():
            raise BuildError(
                f"AlphaEdit may write nowhere: the least singular value of C0 is {float(values.abs().min()):.2g}, "
                f"not below null_threshold {threshold:g}; set it higher"
            )
        self.basis = vectors[:, free].contiguous()  # U, float64 [d1, q]
        self._l2 = l2
        self._earlier = self.basis.new_zeros(self.basis.shape[1], self.basis.shape[1])

    def kernel(self, keys: Tensor) -> Kernel:
        """Of `keys` [m, d1], given the keys remembered so far."""
        inside = keys.to(self.basis) @ self.basis
        system = self._earlier + inside.T @ inside
        system.diagonal().add_(self._l2)
        return Kernel(_solve(system, inside.T).T @ self.basis.T)

    def remember(self, keys: Tensor) -> None:
        """Count `keys` [m, d1] among those of earlier batches."""
        inside = keys.to(self.basis) @ self.basis
        self._earlier += inside.T @ inside


def rect(delta: Tensor, weight: Tensor, keep: float) -> Tensor:
    """RECT (arXiv 2401.04700): `delta` [d2, d1] with only its share `keep` of entries, those of largest |ΔW / W|.

    Not linear in the residuals, so it has no kernel. `weight` is W before the edit.
    """
    change = (delta.abs() / weight.to(delta).abs()).nan_to_num(nan=0.0, posinf=torch.finfo(delta.dtype).max)
    kept = change.flatten().topk(round(keep * delta.numel())).indices
    mask = torch.zeros_like(change, dtype=torch.bool).flatten().index_fill_(0, kept, True)
    return torch.where(mask.reshape(delta.shape), delta, torch.zeros_like(delta))


def _solve(system: Tensor, right: Tensor, factor: Tensor | None = None) -> Tensor:
    """system⁻¹ right for a symmetric positive definite system (and its Cholesky factor), all float64."""
    found = torch.cholesky_solve(right, _factor(system) if factor is None else factor)
    if not bool((system @ found - right).norm() <= _SOLVED * right.norm()):
        raise BuildError(_SINGULAR)
    return found


def _factor(system: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        raise BuildError(_SINGULAR)
    return factor
