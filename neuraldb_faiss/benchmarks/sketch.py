"""Search by a sketch: a short random rotation of the keys picks candidates, the stored keys decide.

Measured here against the ways to search that a database has; none uses it yet.

A query is rarely near any key at all, and a projection to a few random directions shows it: over m of them the measured
cosine of a pair whose cosine is c scatters as a correlation over m samples does, its atanh about atanh(c) with
1 / sqrt(m - 3) (Fisher, 1915), whatever the keys are. So every key whose measured cosine is above
tanh(atanh(gate) - Z / sqrt(m - 3)) is looked at. Of pairs that lie exactly at the gate one in 30,000 is missed (Z = 4),
of all above it far fewer.

Measured on real keys (docs/performance.md), a proof instead of this estimate - the sketch's product plus that of what
it leaves out - rejects next to nothing below a third of the dimensions, with the principal axes as with random ones.
"""

from __future__ import annotations

import math

import numpy as np

from neuraldb_faiss.search.searcher import KeySource
from neuraldb_faiss.search.vectors import rows_per_block, unit_blocks, unit_rows

WIDTH = 160  # directions: more cost more a key, fewer leave more candidates
Z = 4.0
BLOCK = 16_384  # keys scored at once: their products with a few queries stay in the cache


class SketchSearcher:
    """Proposes the keys that can exceed a gate, each scored by its stored key; 4 * width bytes of memory a key.

    Queries for which none can get the one key that looks nearest, with the score that the sketch gives it: which is
    below the gate.
    """

    kind = "sketch"
    tolerance = 1e-4

    def __init__(self, source: KeySource, *, gate: float, width: int = WIDTH) -> None:
        """All keys of the source. gate: the lowest gamma that will be asked for."""
        self._source, self._gate = source, gate
        self.width = max(8, min(width, source.d1))
        # Random signs and a QR would do; Gaussian columns made orthonormal are a uniformly random subspace.
        random = np.random.default_rng(0).standard_normal((source.d1, self.width))
        self._directions = np.ascontiguousarray(np.linalg.qr(random)[0].astype(np.float32))
        self._blocks: list[np.ndarray] = []
        self._n = 0
        for block in unit_blocks(source):
            self.add(block)

    @property
    def ntotal(self) -> int:
        return self._n

    def refresh(self, source: KeySource) -> None:
        """Read stored keys from this snapshot from now on: those that are added next are in it."""
        self._source = source

    def add(self, keys: np.ndarray) -> None:
        """Append float32 rows of unit length, [n, d1]."""
        sketch = self._sketch(keys)
        while len(sketch):
            if not self._blocks or len(self._blocks[-1]) == BLOCK:
                self._blocks.append(np.empty((0, self.width), np.float32))
            room = BLOCK - len(self._blocks[-1])
            self._blocks[-1] = np.concatenate([self._blocks[-1], sketch[:room]])
            sketch = sketch[room:]
        self._n += len(keys)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search` says for keys above the gate; where there are fewer than k of them, position -1."""
        scores, positions = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        if not self._n or not len(queries):
            return scores, positions
        floor = self._floor(self._gate)
        best, at, rows, columns, looks = self._scan(self._sketch(queries), floor, allowed)
        scores[:, 0], positions[:, 0] = np.minimum(best, np.float32(self._gate - 0.01)), at
        order = np.lexsort((-looks, rows))
        rows, columns, looks = rows[order], columns[order], looks[order]
        cuts = np.flatnonzero(np.diff(rows)) + 1
        for first, last in zip(np.r_[0, cuts], np.r_[cuts, len(rows)], strict=True):
            if first == last:
                continue
            row, near = rows[first], columns[first:last]
            exact = self._exact(queries[row], near[:k])
            while len(exact) < len(near):  # what cannot be among the k nearest needs no look at its key
                floor = self._floor(max(float(np.partition(exact, -k)[-k]), self._gate))
                can = int((looks[first:last] > floor).sum())
                if can <= len(exact):
                    break
                more = near[len(exact) : min(can, 2 * len(exact))]
                exact = np.r_[exact, self._exact(queries[row], more)]
            chosen = np.argsort(-exact, kind="stable")[:k]
            scores[row], positions[row] = -np.inf, -1
            scores[row, : len(chosen)], positions[row, : len(chosen)] = exact[chosen], near[chosen]
        return scores, positions

    def _floor(self, cosine: float) -> float:
        """What the sketch measures at least for a pair of this cosine."""
        if self.width == self._source.d1:
            return cosine - self.tolerance
        return math.tanh(math.atanh(min(cosine, 1 - 1e-6)) - Z / math.sqrt(self.width - 3)) - self.tolerance

    def _sketch(self, rows: np.ndarray) -> np.ndarray:
        return unit_rows(rows @ self._directions)[0]

    def _scan(
        self, queries: np.ndarray, floor: float, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The highest measured cosine of each query and where it is; and (row, column, measured) of all above the
        floor."""
        best, at = np.full(len(queries), -np.inf, np.float32), np.full(len(queries), -1, np.int64)
        rows, columns, looks = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for number, block in enumerate(self._blocks):
            products = queries @ block.T if len(queries) > 1 else (block @ queries[0])[None]
            if allowed is not None:
                products[:, ~allowed[number * BLOCK : number * BLOCK + len(block)]] = -np.inf
            place = products.argmax(axis=1)
            top = products[np.arange(len(queries)), place]
            better = top > best
            best[better], at[better] = top[better], number * BLOCK + place[better]
            high = np.flatnonzero(top > floor)
            if len(high):
                row, column = np.nonzero(products[high] > floor)
                rows.append(high[row])
                columns.append(number * BLOCK + column)
                looks.append(products[high[row], column])
        return best, at, np.concatenate(rows), np.concatenate(columns), np.concatenate(looks)

    def _exact(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """float32 [n]: cosines of the stored keys."""
        out = np.empty(len(positions), np.float32)
        step = rows_per_block(self._source.d1, 4)
        for first in range(0, len(positions), step):
            keys = self._source.keys(positions[first : first + step]).astype(np.float32)
            norms = np.sqrt(np.einsum("nd,nd->n", keys, keys))
            with np.errstate(divide="ignore", invalid="ignore"):
                cosines = keys @ query / norms
            out[first : first + step] = np.where(np.isfinite(cosines), cosines, -np.inf)  # no direction: near nothing
        return out
