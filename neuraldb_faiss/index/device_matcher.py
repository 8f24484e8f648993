"""Exact decision in torch, on the device of the queries; the host does not wait for it.

`matcher.decide` in torch: the same float64 cosines of the same stored keys. The host names the candidates and sends
their keys along, a few rows; what the device decides, the device uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.transfers import to_device
from neuraldb_faiss.index.vectors import rows_per_block


@dataclass(frozen=True, slots=True)
class Candidates:
    """Keys that may answer. rows: int64 [m], numbers of queries, ascending. positions: int64 [m], of stored keys; no
    pair comes twice. floors: float64 [m], the cosine that each needs beside the gate. source: the snapshot. behind:
    float64 [m], how much nearer than another each must be to win."""

    rows: np.ndarray
    positions: np.ndarray
    floors: np.ndarray
    source: EntrySource
    behind: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def only(self, kept: Sequence[bool]) -> Candidates:
        """Those at which `kept`, one a candidate, is true."""
        at = np.flatnonzero(np.asarray(kept, bool))
        return Candidates(self.rows[at], self.positions[at], self.floors[at], self.source, self.behind[at])


@dataclass(frozen=True, slots=True)
class Decision:
    """On the device. fires: bool [m], at most one candidate a row. cosines: float64 [m]."""

    fires: torch.Tensor
    cosines: torch.Tensor


def unit_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`vectors.unit_rows` on a device: float32 rows of unit length, zero and False where there is no direction."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    top = wide.abs().amax(dim=1, keepdim=True)
    usable = torch.isfinite(top) & (top > 0)
    unit = torch.where(usable, wide / torch.where(usable, top, 1), 0).float()
    return unit / torch.where(usable, unit.norm(dim=1, keepdim=True), 1), usable[:, 0]


def decide(candidates: Candidates, queries: torch.Tensor, gamma: float) -> Decision:
    """The exact winner of every row among its candidates, where its cosine exceeds gamma and its floor.

    queries: [n, d1], floating, any norm; a row without a direction fires nothing. The winner has the highest cosine
    after `behind` is taken off; equal ones go to the lowest key.
    """
    device, source = queries.device, candidates.source
    groups, place = np.unique(candidates.rows, return_inverse=True)
    rows, positions = to_device(candidates.rows, device), to_device(candidates.positions, device)
    group = to_device(place.astype(np.int64), device)
    cosines = torch.empty(len(candidates), dtype=torch.float64, device=device)
    step = rows_per_block(source.d1, 32)
    for first in range(0, len(candidates), step):
        part = slice(first, first + step)
        query = queries[rows[part]].double()
        query = query / query.abs().amax(dim=1, keepdim=True)
        key = to_device(source.keys(candidates.positions[part]), device).double()
        norms = query.square().sum(dim=1).sqrt() * key.square().sum(dim=1).sqrt()
        found = (query * key).sum(dim=1) / norms
        cosines[part] = torch.where(torch.isfinite(norms) & (norms > 0) & torch.isfinite(found), found, 0.0)
    least = to_device(candidates.floors, device)
    high = (cosines >= least) & (cosines > gamma)
    rank = cosines - to_device(candidates.behind, device)
    top = torch.full((len(groups),), -4.0, dtype=torch.float64, device=device)
    top = top.scatter_reduce(0, group, torch.where(high, rank, -4.0), "amax")
    best = high & (rank == top[group])
    beyond = source.n_keys
    lowest = torch.full((len(groups),), beyond, dtype=torch.int64, device=device)
    lowest = lowest.scatter_reduce(0, group, torch.where(best, positions, beyond), "amin")
    return Decision(best & (positions == lowest[group]), cosines)
