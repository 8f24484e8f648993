"""Arithmetic on keys and queries: unit length in float32 for FAISS, exact cosines in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from neuraldb_faiss.index.base import KeySource

BLOCK_BYTES = 64 << 20  # working memory of one block: large enough for full speed, small beside an index


def rows_per_block(d: int, itemsize: int) -> int:
    return max(1, BLOCK_BYTES // max(1, d * itemsize))


def unit_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of any norm as float32 rows of unit length, and which of them have a direction at all.

    rows: float [n, d]. Each row is divided by its largest magnitude first, so that neither 1e30 nor 1e-40
    leaves float32 when squared. Rows that are zero or hold a NaN or an infinity come back zero and False.
    """
    if rows.size == 0:
        return np.zeros(rows.shape, np.float32), np.zeros(len(rows), bool)
    top = np.maximum(rows.max(axis=1), -rows.min(axis=1))  # NaN and inf survive max and min
    usable = np.isfinite(top) & (top > 0)
    scale = np.where(usable, top, 1).astype(rows.dtype)
    unit = (rows / scale[:, None]).astype(np.float32)
    if not usable.all():
        unit[~usable] = 0
    norms = np.sqrt(np.einsum("nd,nd->n", unit, unit))
    unit /= np.where(usable, norms, 1).astype(np.float32)[:, None]
    return unit, usable


def unit_blocks(source: KeySource, start: int = 0) -> Iterator[np.ndarray]:
    """The stored float16 keys from position `start` on as float32 rows of unit length, block by block.

    A stored row with a NaN becomes a zero row: it holds its position and is never near anything.
    """
    step = rows_per_block(source.d1, 4)
    for _, block in source.key_blocks(start):
        for first in range(0, len(block), step):
            yield unit_rows(block[first : first + step].astype(np.float32))[0]


def exact_cosines(source: KeySource, queries: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """float64 [m]: the cosine of queries[rows[i]] and the stored key positions[i].

    queries: float [n, d] with a direction each. Computed in float64 on the stored float16 key, divided by
    that row's own norm. Every pair is summed in the same order, so equal keys give equal bits and ties stay
    ties; a BLAS product does not promise that. A stored row without a direction gives 0.
    """
    out = np.empty(len(rows), np.float64)
    step = rows_per_block(source.d1, 24)
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        query = queries[rows[part]].astype(np.float64)
        query /= np.abs(query).max(axis=1, keepdims=True)
        key = source.keys(positions[part]).astype(np.float64)
        dots = (query * key).sum(axis=1)
        norms = np.sqrt((query * query).sum(axis=1)) * np.sqrt((key * key).sum(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            out[part] = np.where(np.isfinite(norms) & (norms > 0), dots / norms, 0.0)
    return out
