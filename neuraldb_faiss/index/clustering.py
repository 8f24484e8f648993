"""Centroids of an IVF index: how many lists, how many of them a query visits, and the training."""

from __future__ import annotations

import math

import numpy as np

from neuraldb_faiss.index.base import KeySource
from neuraldb_faiss.index.faiss_module import gpu_count, load_faiss, small_batches
from neuraldb_faiss.index.vectors import unit_rows

TRAINING_ROWS_PER_LIST = 64  # FAISS asks for 39 at least and gains little from more


def automatic_nlist(n_keys: int) -> int:
    """4 * sqrt(n), FAISS's own advice, as long as each list is left with enough rows to be trained on."""
    return max(1, min(int(4 * math.sqrt(n_keys)), n_keys // TRAINING_ROWS_PER_LIST))


def automatic_nprobe(nlist: int) -> int:
    """An eighth of the lists, and at least 16 of them."""
    return min(nlist, max(16, math.ceil(nlist / 8)))


def train(source: KeySource, nlist: int) -> np.ndarray:
    """float32 [nlist, d1]: centroids of spherical k-means over a sample of the keys, always the same on one machine;
    on all GPUs that FAISS can use."""
    n = source.n_keys
    if n == 0:
        return np.zeros((1, source.d1), np.float32)
    size = min(n, TRAINING_ROWS_PER_LIST * nlist)
    # Random, not every tenth: raw and mean keys alternate in the store.
    sample = np.sort(np.random.default_rng(0).choice(n, size, replace=False))
    rows, usable = unit_rows(source.keys(sample).astype(np.float32))
    rows = rows[usable]
    if nlist == 1 or len(rows) <= nlist:
        return rows[:nlist] if len(rows) else np.zeros((1, source.d1), np.float32)
    faiss = load_faiss()
    means = faiss.Kmeans(
        source.d1, nlist, niter=10, spherical=True, seed=1234, min_points_per_centroid=1, gpu=gpu_count() > 0
    )
    with small_batches(source.d1):
        means.train(rows)
    return np.ascontiguousarray(means.centroids)
