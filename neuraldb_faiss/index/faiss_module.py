"""The only import of FAISS, and its one global setting that matters."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from neuraldb_faiss.errors import SearchError


class FaissMissing(SearchError):
    """Neither faiss-cpu nor faiss-gpu is installed."""


def load_faiss() -> ModuleType:
    """The module `faiss`. Raises FaissMissing with the two commands that install it."""
    try:
        import faiss
    except (ImportError, RuntimeError) as error:  # faiss-gpu raises the latter where CUDA's own wheels are missing
        raise FaissMissing(
            "FAISS is not installed: run `pip install 'neuraldb-faiss[cpu]'`, or, on a machine with an "
            f"NVIDIA GPU, `pip install 'neuraldb-faiss[gpu]'`, never both ({error})"
        ) from error
    return faiss


def gpu_count() -> int:
    """GPUs that the installed FAISS can use: none where it is faiss-cpu."""
    count = getattr(load_faiss(), "get_num_gpus", None)
    return 0 if count is None else int(count())


_lock = threading.Lock()
_users = 0
_kept = 0


@contextmanager
def small_batches(d: int) -> Iterator[None]:
    """Let FAISS use GEMM from three queries on while the block runs, then set its global back.

    FAISS 1.15 uses GEMM only from queries x d >= 128,000, which is 84 queries at d = 1536: measured there on
    2 cores over 100,000 keys, 64 queries took 983 ms without and 140 ms with it, 8 took 115 and 75, 2 took 27
    and 43, one 34 either way. The setting belongs to the process, so the first one in keeps it and the last
    one out puts it back, whatever the threads do between.
    """
    global _users, _kept
    cvar = load_faiss().cvar
    with _lock:
        if _users == 0:
            _kept = cvar.distance_compute_blas_threshold
        _users += 1
        cvar.distance_compute_blas_threshold = 3 * d
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                cvar.distance_compute_blas_threshold = _kept


def selector(allowed: np.ndarray) -> tuple[Any, np.ndarray]:
    """FAISS's selector of the True positions, and the bits it points to (keep them while it is used)."""
    bits = np.packbits(allowed, bitorder="little")
    return load_faiss().IDSelectorBitmap(bits), bits
