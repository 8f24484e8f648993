"""Candidate keys from an index on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates, unit_rows
from neuraldb_faiss.index.gpu import GpuSearcher
from neuraldb_faiss.index.transfers import Transfer, to_device

FIRST_K = 16
GROWTH = 16


def propose(
    source: EntrySource,
    searcher: GpuSearcher,
    queries: torch.Tensor,
    first_tokens: Callable[[], tuple[np.ndarray, np.ndarray]],
    later: np.ndarray | None,
    heads: Mapping[int, np.ndarray],
    gamma: float,
) -> Candidates:
    """Every key that can be the nearest one above gamma, by scores that are off by `searcher.tolerance` at the most.

    With t the tolerance, the winner w and the best-scored key b: score(w) >= cos(w) - t >= cos(b) - t >= score(b) - 2t,
    and cos(w) > gamma, so score(w) > gamma - t. Keys below either bound are none, and rows whose last answer lies above
    both are asked again, for more keys and only for those that may answer.

    Args:
        queries: [n, d1], on the searcher's device.
        first_tokens: see `Matcher.candidates`; called after the search was started.
        later: bool [n_keys], the keys that answer behind a text's first token, None for all.
        heads: first token -> the keys that answer there.
    """
    n = source.n_keys
    total = searcher.ntotal
    if total > n:  # rolled back: the index still holds later keys
        later = np.pad(np.ones(n, bool) if later is None else later, (0, total - n))
    unit, _ = unit_rows(queries)
    k, gate = min(FIRST_K, total), gamma - searcher.tolerance
    search = Transfer(searcher.nearest(unit, k) if total else (unit[:, :0], unit[:, :0].long()))
    near, at = search.arrays()
    asked, tokens = first_tokens()
    pending = np.flatnonzero(asked & (tokens < 0))
    near, at = near[pending], at[pending]
    rows: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    for first in np.flatnonzero(asked & (tokens >= 0)).tolist():
        keys = heads.get(int(tokens[first]), np.empty(0, np.int64))
        rows.append(np.full(len(keys), first))
        positions.append(keys)
    while total and len(pending):
        fits = at >= 0
        if later is not None:
            fits &= later[at]
        fitting = np.where(fits, near, -np.inf)
        bound = np.maximum(fitting.max(axis=1) - 2 * searcher.tolerance, gate)
        more = (at[:, -1] >= 0) & (near[:, -1] >= bound) & (k < total)
        row, column = np.nonzero((fitting >= bound[:, None]) & ~more[:, None])
        rows.append(pending[row])
        positions.append(at[row, column])
        pending, k = pending[more], min(k * GROWTH, total)
        if len(pending):
            again = unit[to_device(pending, unit.device)]
            near, at = Transfer(searcher.nearest(again, k, later)).arrays()
    which, keys = (np.concatenate([*parts, np.empty(0)]).astype(np.int64) for parts in (rows, positions))
    order = np.lexsort((keys, which))
    return Candidates(which[order], keys[order], np.full(len(order), -1.0), source, np.zeros(len(order)))
