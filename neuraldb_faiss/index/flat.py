"""Index kind `flat`: every key, by inner product of unit vectors."""

from __future__ import annotations

import numpy as np

from neuraldb_faiss.index import gpu
from neuraldb_faiss.index.base import KeySource, Place, Searcher
from neuraldb_faiss.index.faiss_module import load_faiss, selector, small_batches


class FlatSearcher(Searcher):
    """faiss.IndexFlatIP: 4 * d1 bytes of memory a key, and every key looked at."""

    kind = "flat"
    tolerance = 1e-4  # float32 sums over 16,384 dimensions stay within 1e-5

    def __init__(self, d1: int) -> None:
        self._faiss = load_faiss()
        self._d1 = d1
        self._index = self._faiss.IndexFlatIP(d1)

    @property
    def ntotal(self) -> int:
        return int(self._index.ntotal)

    def add(self, keys: np.ndarray) -> None:
        self._index.add(keys)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, above: float = -1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        if allowed is None:
            with small_batches(self._d1):
                return self._index.search(queries, k)
        # FAISS never uses GEMM with a selector, so the matcher comes here only with the rows that need it.
        chosen, _bits = selector(allowed)
        return self._index.search(queries, k, params=self._faiss.SearchParameters(sel=chosen))


def open_flat(source: KeySource, place: Place) -> Searcher:
    """An empty searcher, on the GPU of `place` if one is given."""
    if place.gpu is None:
        return FlatSearcher(source.d1)
    gpus = gpu.choose_gpus(place.gpu, 2 * 2 * source.n_keys * source.d1)  # float16, twice while it grows
    return gpu.GpuFlatSearcher(source.d1, place.gpu, gpus)
