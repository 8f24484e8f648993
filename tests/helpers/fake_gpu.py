"""faiss-gpu's names over CPU indices, as strict as the real ones where it matters, and a GPU's events to count waits.

It shows that ours asks for what a GPU index can give; what a GPU does with it is for `pytest -m gpu`.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np
import pytest

from neuraldb_faiss.index import clustering, faiss_module, flat, gpu, ivf, transfers


def array_at(pointer: Any, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    """What stands at an address."""
    size = int(np.prod(shape)) * ctypes.sizeof(kind)
    return np.frombuffer((ctypes.c_char * size).from_address(pointer), kind).reshape(shape)


class Resources:
    """StandardGpuResources."""

    def __init__(self) -> None:
        self.temp_memory = 1536 << 20

    def setTempMemory(self, size: int) -> None:
        self.temp_memory = size


class Flat:
    """GpuIndexFlat with useFloat16: keys and queries are rounded, sums are not."""

    def __init__(self, resources: Resources, d: int, metric: int, config: Any) -> None:
        assert metric == faiss.METRIC_INNER_PRODUCT and config.useFloat16 and not config.use_cuvs
        self.resources, self.d, self.device = resources, d, config.device
        self._index = faiss.IndexFlatIP(d)

    @staticmethod
    def _rounded(rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float16).astype(np.float32)

    def add(self, keys: np.ndarray) -> None:
        self._index.add(self._rounded(keys))

    def search_c(self, n: int, x: int, k: int, near: int, at: int) -> None:
        assert 0 < k <= 2048
        found = self._index.search(self._rounded(array_at(x, (n, self.d), ctypes.c_float)), k)
        array_at(near, (n, k), ctypes.c_float)[:] = found[0]
        array_at(at, (n, k), ctypes.c_int64)[:] = found[1]

    def reconstruct_n_c(self, first: int, n: int, out: int) -> None:
        array_at(out, (n, self.d), ctypes.c_float)[:] = self._index.reconstruct_n(first, n)


class Ivf(Flat):
    """GpuIndexIVFFlat, made from an empty CPU index."""

    def __init__(self, resources: Resources, index: Any, config: Any) -> None:
        assert index.ntotal == 0 and index.is_trained and not config.use_cuvs
        self.resources, self.d, self.device = resources, index.d, config.device
        self._index: Any = faiss.clone_index(index)

    @property
    def nprobe(self) -> int:
        return int(self._index.nprobe)

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        assert value <= 2048
        self._index.nprobe = value

    @staticmethod
    def _rounded(rows: np.ndarray) -> np.ndarray:
        return rows


class Event:
    """Of a stream in which everything given before it is done once it was waited for."""

    given, done, waits = 0, 0, 0

    def __init__(self) -> None:
        Event.given += 1
        self._number = Event.given

    def query(self) -> bool:
        return self._number <= Event.done

    def synchronize(self) -> None:
        Event.waits += 1
        Event.done = Event.given


def fake_faiss(count: int) -> SimpleNamespace:
    """The module, with `count` GPUs. Pointers are plain addresses."""
    own = {
        "get_num_gpus": lambda: count,
        "StandardGpuResources": Resources,
        "GpuIndexFlat": Flat,
        "GpuIndexFlatConfig": SimpleNamespace,
        "GpuIndexIVFFlat": Ivf,
        "GpuIndexIVFFlatConfig": SimpleNamespace,
        "cast_integer_to_float_ptr": int,
        "cast_integer_to_idx_t_ptr": int,
        "Kmeans": lambda *args, gpu, **how: faiss.Kmeans(*args, **how),
    }
    return SimpleNamespace(**{**{name: getattr(faiss, name) for name in dir(faiss)}, **own})


def install(patch: pytest.MonkeyPatch, gpus: int = 1) -> None:
    """From now on CPU tensors count as lying on a GPU, and FAISS sees this many of them."""
    module = fake_faiss(gpus)
    for room in (clustering, faiss_module, flat, gpu, ivf):
        patch.setattr(room, "load_faiss", lambda: module)
    patch.setattr(gpu, "choose_gpus", lambda device, need: list(range(gpus)))
    patch.setattr(transfers, "is_gpu", lambda device: True)
    patch.setattr(transfers, "mark", lambda device: Event())
