"""Index kind `sketch`: a short random rotation of the keys picks candidates, the stored keys decide.

A query is rarely near any key at all, and a projection to a few random directions shows it: over m of them the measured
cosine of a pair whose cosine is c scatters as a correlation over m samples does, its atanh about atanh(c) with
1 / sqrt(m - 3) (Fisher, 1915), whatever the keys are. So every key whose measured cosine is above
tanh(atanh(gate) - Z / sqrt(m - 3)) is looked at. Of pairs that lie exactly at the gate one in 30,000 is missed (Z = 4),
of all above it far fewer.

Measured on real keys (docs/performance.md), a proof instead of this estimate - the sketch's product plus that of what
it leaves out - rejects next to nothing below a third of the dimensions, with the principal axes as with random ones.

Sketches are kept in 8 bits. What that takes from a product scatters the same way, and is taken from the floor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from neuraldb_faiss.index.base import KeySource, Place, Searcher
from neuraldb_faiss.index.vectors import unit_rows

WIDTH = 160  # directions: more cost more a key, fewer leave more candidates
Z = 4.0
BLOCK = 1 << 17  # keys kept together
PRODUCTS = 1 << 20  # scored at once: they stay in the cache
LOOKED = 1 << 20  # bytes of stored keys read at once: more would be new memory every time
LEVELS = 127


class SketchSearcher(Searcher):
    """Proposes the keys that can exceed a gate, each scored by its stored key; width + 4 bytes of memory a key.

    source: the snapshot that stored keys are read from; one in which all added keys are.
    """

    kind = "sketch"
    tolerance = 1e-4
    first_k = 2  # the second nearest tells whether the nearest is alone; a third costs looks at keys
    masks_freely = True

    def __init__(self, source: KeySource, *, width: int = WIDTH) -> None:
        self._source = source
        self.width = max(8, min(width, source.d1))
        # Random signs and a QR would do; Gaussian columns made orthonormal are a uniformly random subspace.
        random = np.random.default_rng(0).standard_normal((source.d1, self.width))
        self._directions = torch.from_numpy(np.ascontiguousarray(np.linalg.qr(random)[0].T.astype(np.float32)))
        self._blocks: list[tuple[torch.Tensor, torch.Tensor]] = []  # int8 [n, width], float32 [n]: the value of a one
        self._error = 0.0  # the longest way from a key's sketch to what is kept of it
        self._lost = min(1.0, Z / math.sqrt(self.width))  # of such a way, at most, along a sketch of unit length
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
        exact = np.full(len(rows), -np.inf, np.float32)
        cuts = np.flatnonzero(np.diff(rows, prepend=-1, append=-1)) if len(rows) else np.empty(0, np.int64)
        first, last = cuts[:-1], cuts[1:]
        read, wanted = first.copy(), np.minimum(first + k, last)
        while (wanted > read).any():
            part = np.concatenate([np.arange(*span) for span in zip(read, wanted, strict=True)])
            exact[part] = self._exact(queries, rows[part], columns[part])
            read = wanted.copy()
            for row in np.flatnonzero(read < last):  # what cannot be among the k nearest needs no look at its key
                lowest = float(np.partition(exact[first[row] : read[row]], -k)[-k])
                floor = self._floor(max(lowest, above))
                can = first[row] + int((looks[first[row] : last[row]] > floor).sum())
                wanted[row] = max(read[row], min(can, 2 * read[row] - first[row]))
        for low, high in zip(first, last, strict=True):
            chosen = low + np.argsort(-exact[low:high], kind="stable")[:k]
            chosen, row = chosen[np.isfinite(exact[chosen])], rows[low]
            scores[row], positions[row] = -np.inf, -1
            scores[row, : len(chosen)], positions[row, : len(chosen)] = exact[chosen], columns[chosen]
        return scores, positions

    def follow(self, source: KeySource) -> None:
        self._source = source

    def _floor(self, cosine: float) -> float:
        """What is measured at least for a pair of this cosine, a query's own bytes apart."""
        seen = cosine
        if self.width < self._source.d1:
            inside = min(max(cosine, 1e-6 - 1), 1 - 1e-6)
            seen = math.tanh(math.atanh(inside) - Z / math.sqrt(self.width - 3))
        return seen - self._lost * self._error - self.tolerance

    def _sketch(self, rows: np.ndarray) -> np.ndarray:
        # By torch, as the rest: NumPy's threads and torch's stand in each other's way.
        wide = torch.from_numpy(rows)
        seen = (self._directions @ wide[0])[None] if len(wide) == 1 else wide @ self._directions.T
        return unit_rows(seen.numpy())[0]

    def _scan(
        self, queries: np.ndarray, floor: float, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The highest measured cosine of each query and where it is; and (row, column, measured) of all above the
        floor."""
        codes, ones, errors = _in_bytes(queries)
        unit = ones.numpy()
        errors *= self._lost * (1 + self._error)
        floors = (floor - errors) / np.maximum(unit, 1e-30)  # in a query's own units, as `products`
        best, at = np.full(len(queries), -np.inf, np.float32), np.full(len(queries), -1, np.int64)
        rows, columns, looks = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for start, block, of_one in self._parts(max(1, PRODUCTS // len(queries))):
            products = _products(codes, block).mul_(of_one).numpy()
            if allowed is not None:
                products[:, ~allowed[start : start + len(block)]] = -np.inf
            place = products.argmax(axis=1)
            top = products[np.arange(len(queries)), place]
            better = top > best
            best[better], at[better] = top[better], start + place[better]
            high = np.flatnonzero(top > floors)
            if len(high):
                row, column = np.nonzero(products[high] > floors[high, None])
                rows.append(high[row])
                columns.append(start + column)
                looks.append(products[high[row], column] * unit[high[row]] + errors[high[row]])
        return best * unit, at, np.concatenate(rows), np.concatenate(columns), np.concatenate(looks)

    def _parts(self, size: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        """(the first key's position, codes, values of a one), of at most `size` keys each."""
        for number, (codes, ones) in enumerate(self._blocks):
            for first in range(0, len(codes), size):
                yield number * BLOCK + first, codes[first : first + size], ones[first : first + size]

    def _exact(self, queries: np.ndarray, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """float32 [n]: the cosines of queries `rows` and the stored keys at `positions`."""
        out = np.empty(len(rows), np.float32)
        step = max(1, LOOKED // (2 * self._source.d1))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            keys = torch.from_numpy(self._source.keys(positions[part])).float()  # ten times NumPy's pace
            own, which = np.unique(rows[part], return_inverse=True)
            products = (keys @ torch.from_numpy(queries[own]).T).numpy()[np.arange(len(keys)), which]
            with np.errstate(divide="ignore", invalid="ignore"):
                cosines = products / torch.linalg.vector_norm(keys, dim=1).numpy()
            out[part] = np.where(np.isfinite(cosines), cosines, -np.inf)  # no direction: near nothing
        return out


def open_sketch(source: KeySource, place: Place) -> SketchSearcher:
    """An empty searcher; it keeps nothing, and stays on the host."""
    return SketchSearcher(source)


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
