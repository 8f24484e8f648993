"""Search by a sketch: a short random rotation of the keys picks candidates, the stored keys decide.

A query is rarely near any key at all, and a projection to a few random directions shows it: over m of them the measured
cosine of a pair whose cosine is c scatters as a correlation over m samples does, its atanh about atanh(c) with
1 / sqrt(m - 3) (Fisher, 1915), whatever the keys are. So every key whose measured cosine is above
tanh(atanh(gate) - Z / sqrt(m - 3)) is looked at. Of pairs that lie exactly at the gate one in 30,000 is missed (Z = 4),
of all above it far fewer.

Measured on real keys (docs/performance.md), a proof instead of this estimate - the sketch's product plus that of what
it leaves out - rejects next to nothing below a third of the dimensions, with the principal axes as with random ones.

Sketches are kept in 8 bits. What that takes from a product is bounded, and taken from the floor.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from neuraldb_faiss.search.searcher import KeySource
from neuraldb_faiss.search.vectors import rows_per_block, unit_rows

WIDTH = 160  # directions: more cost more a key, fewer leave more candidates
Z = 4.0
BLOCK = 16_384  # keys scored at once: their products with a few queries stay in the cache
LEVELS = 127


class SketchSearcher:
    """Proposes the keys that can exceed a gate, each scored by its stored key; width + 4 bytes of memory a key.

    source: the snapshot that stored keys are read from; one in which all added keys are.
    """

    kind = "sketch"
    tolerance = 1e-4

    def __init__(self, source: KeySource, *, width: int = WIDTH) -> None:
        self.source = source
        self.width = max(8, min(width, source.d1))
        # Random signs and a QR would do; Gaussian columns made orthonormal are a uniformly random subspace.
        random = np.random.default_rng(0).standard_normal((source.d1, self.width))
        self._directions = np.ascontiguousarray(np.linalg.qr(random)[0].astype(np.float32))
        self._blocks: list[tuple[torch.Tensor, torch.Tensor]] = []  # int8 [n, width], float32 [n]: the value of a one
        self._error = 0.0  # the longest way from a key's sketch to what is kept of it
        self._n = 0

    @property
    def ntotal(self) -> int:
        return self._n

    def add(self, keys: np.ndarray) -> None:
        codes, ones, errors = _in_bytes(self._sketch(keys))
        self._error = max(self._error, float(errors.max(initial=0)))
        self._n += len(keys)
        while len(codes):
            if not self._blocks or len(self._blocks[-1][0]) == BLOCK:
                self._blocks.append((codes[:0], ones[:0]))
            old = self._blocks[-1]
            room = BLOCK - len(old[0])
            self._blocks[-1] = torch.cat([old[0], codes[:room]]), torch.cat([old[1], ones[:room]])
            codes, ones = codes[room:], ones[room:]

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, above: float = -1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`. Where nothing exceeds `above`, a query gets one key, the one that looks nearest, with
        about the cosine that it seems to have."""
        scores, positions = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        if not self._n or not len(queries):
            return scores, positions
        best, at, rows, columns, looks = self._scan(self._sketch(queries), self._floor(above), allowed)
        scores[:, 0], positions[:, 0] = np.minimum(best, np.float32(above - 0.01)), at
        order = np.lexsort((-looks, rows))
        rows, columns, looks = rows[order], columns[order], looks[order]
        cuts = np.flatnonzero(np.diff(rows)) + 1
        for first, last in zip(np.r_[0, cuts], np.r_[cuts, len(rows)], strict=True):
            if first == last:
                continue
            row, near = rows[first], columns[first:last]
            exact = self._exact(queries[row], near[:k])
            while len(exact) < len(near):  # what cannot be among the k nearest needs no look at its key
                floor = self._floor(max(float(np.partition(exact, -k)[-k]), above))
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
        """What is measured at least for a pair of this cosine, a query's own bytes apart."""
        seen = cosine
        if self.width < self.source.d1:
            inside = min(max(cosine, 1e-6 - 1), 1 - 1e-6)
            seen = math.tanh(math.atanh(inside) - Z / math.sqrt(self.width - 3))
        return seen - self._error - self.tolerance

    def _sketch(self, rows: np.ndarray) -> np.ndarray:
        return unit_rows(rows @ self._directions)[0]

    def _scan(
        self, queries: np.ndarray, floor: float, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The highest measured cosine of each query and where it is; and (row, column, measured) of all above the
        floor."""
        codes, ones, errors = _in_bytes(queries)
        unit = ones.numpy()
        errors *= 1 + self._error
        floors = (floor - errors) / np.maximum(unit, 1e-30)  # in a query's own units, as `products`
        best, at = np.full(len(queries), -np.inf, np.float32), np.full(len(queries), -1, np.int64)
        rows, columns, looks = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for number, (block, of_one) in enumerate(self._blocks):
            products = _products(codes, block).mul_(of_one).numpy()
            if allowed is not None:
                products[:, ~allowed[number * BLOCK : number * BLOCK + len(block)]] = -np.inf
            place = products.argmax(axis=1)
            top = products[np.arange(len(queries)), place]
            better = top > best
            best[better], at[better] = top[better], number * BLOCK + place[better]
            high = np.flatnonzero(top > floors)
            if len(high):
                row, column = np.nonzero(products[high] > floors[high, None])
                rows.append(high[row])
                columns.append(number * BLOCK + column)
                looks.append(products[high[row], column] * unit[high[row]] + errors[high[row]])
        return best * unit, at, np.concatenate(rows), np.concatenate(columns), np.concatenate(looks)

    def _exact(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """float32 [n]: cosines of the stored keys."""
        out = np.empty(len(positions), np.float32)
        step = rows_per_block(self.source.d1, 4)
        wanted = torch.from_numpy(query)
        for first in range(0, len(positions), step):
            keys = torch.from_numpy(self.source.keys(positions[first : first + step])).float()  # ten times NumPy's pace
            cosines = (keys @ wanted / keys.norm(dim=1)).numpy()
            out[first : first + step] = np.where(np.isfinite(cosines), cosines, -np.inf)  # no direction: near nothing
        return out


def _in_bytes(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Rows [n, m] as int8 [n, m] times float32 [n], and how far from each that is, float32 [n]."""
    wide = torch.from_numpy(rows)
    ones = wide.abs().amax(dim=1) / LEVELS
    codes = (wide / ones.clamp(min=1e-30)[:, None]).round_()
    errors = (wide - codes * ones[:, None]).norm(dim=1).numpy()
    return codes.to(torch.int8), ones, errors


def _products(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """float32 [b, n] from int8 [b, m] and int8 [n, m]. PyTorch's only product of integers with instructions made for it
    has no public name; without it the same comes slower."""
    if hasattr(torch, "_int_mm"):
        return torch._int_mm(queries, keys.T).float()
    return queries.float() @ keys.float().T
