"""Searchers on GPUs: `flat` with float16 keys, and `ivf`, each over one GPU or over several.

FAISS's own IndexShards takes neither a second `add` (with positions for numbers) nor tensors that lie on a GPU, and
importing faiss.contrib.torch_utils takes the search parameters away from every CPU index of the process. So the shards
and the handing over of pointers are a few lines here. A GPU index can neither remove keys nor heed a selector: keys are
only ever added within an epoch, the matcher passes over those that do not answer, and where more than MAX_K keys must
be looked through `flat` scans its own keys.

GPU memory asked for, on each GPU: TEMP_BYTES for FAISS to work in; the keys (2 bytes a number in `flat`, which FAISS
copies once as it grows, so twice that while it opens; 4 bytes in `ivf`); 8 bytes a key for its position.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.index.base import Searcher
from neuraldb_faiss.index.clustering import automatic_nprobe
from neuraldb_faiss.index.faiss_module import gpu_count, load_faiss
from neuraldb_faiss.index.transfers import Transfer, to_device

TEMP_BYTES = 256 << 20  # StandardGpuResources takes 1.5 GiB unless told otherwise
MAX_K = 2048  # the GPU's limit for k and for nprobe
# A float16 score is off by no more than 2**-11 for the rounding of the query, and as much for that of the key: both are
# of unit length, and a product's terms add up to 1 at the most (Cauchy, Schwarz). The rest is for sums in float32 and
# for numbers below float16's normal range (2**-25 each: under 1e-5 at 16,384 dimensions).
HALF_TOLERANCE = 2 * 2.0**-11 + 1e-4

_log = logging.getLogger(__name__)


def choose_gpus(device: torch.device, need: int) -> list[int]:
    """Which GPUs hold `need` bytes of index for a model on `device`: its own one if they fit there, else all."""
    own = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.empty_cache()  # FAISS's memory does not come from torch's
    free, _ = torch.cuda.mem_get_info(own)
    count = gpu_count()
    chosen = [own] if need + TEMP_BYTES < free or count == 1 else [own, *(n for n in range(count) if n != own)]
    _log.info("GPU search on %s: %.2f GB of index and %d MiB to work in on each", chosen, need / 1e9, TEMP_BYTES >> 20)
    return chosen


class _Shard:
    """One GPU's part of the keys. `positions`: int64 [count] on that GPU, the matcher's numbers of its keys."""

    def __init__(self, index: Any, resources: Any, device: torch.device) -> None:
        self.index, self._resources, self.device = index, resources, device
        self.positions = torch.empty(0, dtype=torch.int64, device=device)

    @property
    def count(self) -> int:
        return len(self.positions)

    def add(self, keys: np.ndarray, first: int) -> None:
        self._use_stream()
        try:
            self.index.add(np.ascontiguousarray(keys))
            numbers = torch.arange(first, first + len(keys), device=self.device)
            self.positions = torch.cat([self.positions, numbers])
        except RuntimeError as error:  # FAISS's own, and torch's
            reason = " ".join(str(error).split())
            raise SearchError(
                f"{first + len(keys):,} keys of {self.index.d} do not fit on {self.device}: free its memory, keep the"
                f" subject guard (it needs no index), or search on the host with faiss-cpu ({reason[:200]})"
            ) from error

    def search(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        faiss = load_faiss()
        queries = queries.contiguous()
        near = torch.empty((len(queries), k), dtype=torch.float32, device=self.device)
        at = torch.empty((len(queries), k), dtype=torch.int64, device=self.device)
        self._use_stream()
        self.index.search_c(
            len(queries), faiss.cast_integer_to_float_ptr(queries.data_ptr()), k,
            faiss.cast_integer_to_float_ptr(near.data_ptr()), faiss.cast_integer_to_idx_t_ptr(at.data_ptr()),
        )  # fmt: skip
        return near, torch.where(at >= 0, self.positions[at.clamp(min=0)], -1)

    def scan(self, queries: torch.Tensor, k: int, allowed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """As `search`, for any k, over the keys that are `allowed` (bool by position); `flat` only."""
        faiss = load_faiss()
        near = torch.full((len(queries), k), -np.inf, dtype=torch.float32, device=self.device)
        at = torch.full((len(queries), k), -1, dtype=torch.int64, device=self.device)
        step = max(1, TEMP_BYTES // (4 * self.index.d))
        for first in range(0, self.count, step):
            size = min(step, self.count - first)
            block = torch.empty((size, self.index.d), dtype=torch.float32, device=self.device)
            self._use_stream()
            self.index.reconstruct_n_c(first, size, faiss.cast_integer_to_float_ptr(block.data_ptr()))
            scores, numbers = queries @ block.T, self.positions[first : first + size]
            numbers = numbers.expand(len(queries), -1)
            if allowed is not None:
                fits = allowed[numbers]
                scores, numbers = torch.where(fits, scores, -np.inf), torch.where(fits, numbers, -1)
            near, order = torch.cat([near, scores], dim=1).topk(k, dim=1)
            at = torch.cat([at, numbers], dim=1).gather(1, order)
        return near, at

    def _use_stream(self) -> None:
        """FAISS works in torch's stream, so that neither waits for the other on the host."""
        if self.device.type == "cuda":
            stream = torch.cuda.current_stream(self.device).cuda_stream
            self._resources.setDefaultStream(self.device.index, load_faiss().cast_integer_to_cudastream_t(stream))


class GpuSearcher(Searcher):
    """What both kinds are: shards, filled evenly; the nearest of all of them, on the device of the queries.

    One search at a time: FAISS's GPU resources are not made for more.
    """

    kind: str
    tolerance: float
    exhaustive: bool  # whether every key can be looked through

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._shards: list[_Shard] = []
        self._count = 0
        self._lock = threading.Lock()

    @property
    def ntotal(self) -> int:
        return self._count

    def add(self, keys: np.ndarray) -> None:
        """Append float32 rows of unit length, [n, d1]."""
        if len(keys):
            with self._lock:
                min(self._shards, key=lambda shard: shard.count).add(keys, self._count)
                self._count += len(keys)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, above: float = -1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `Searcher.search`; waits for the GPU."""
        near, at = Transfer(self.nearest(to_device(queries, self.device), k, allowed)).arrays()
        return near, at

    def nearest(
        self, queries: torch.Tensor, k: int, allowed: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Searcher.search`, from and to the device of the queries; the host waits for nothing.

        `ivf` looks no further than MAX_K keys a shard: with `allowed` it gives those of them that are.
        """
        found = []
        with self._lock:
            for shard in self._shards:
                if not shard.count:
                    continue
                local, own = queries.to(shard.device, non_blocking=True), min(k, shard.count)
                mask = None if allowed is None else to_device(allowed, shard.device)
                if self.exhaustive and (mask is not None or own > MAX_K):
                    near, at = shard.scan(local, own, mask)
                else:
                    near, at = shard.search(local, min(MAX_K, own if mask is None else shard.count))
                    if mask is not None:
                        fits = (at >= 0) & mask[at.clamp(min=0)]
                        near, at = torch.where(fits, near, -np.inf), torch.where(fits, at, -1)
                found.append((near.to(queries.device, non_blocking=True), at.to(queries.device, non_blocking=True)))
        near, at = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        near = torch.where(at >= 0, near, -np.inf)
        near, order = near.topk(min(k, near.shape[1]), dim=1)
        return near, at.gather(1, order)


class GpuFlatSearcher(GpuSearcher):
    """faiss.GpuIndexFlat by inner product, keys and queries in float16: exact once the exact cosine has decided."""

    kind, exhaustive, tolerance = "flat", True, HALF_TOLERANCE

    def __init__(self, d1: int, device: torch.device, gpus: Sequence[int]) -> None:
        super().__init__(device)
        faiss = load_faiss()
        for number in gpus:
            config = faiss.GpuIndexFlatConfig()
            config.device, config.useFloat16, config.use_cuvs = number, True, False
            resources = _resources()
            index = faiss.GpuIndexFlat(resources, d1, faiss.METRIC_INNER_PRODUCT, config)
            self._shards.append(_Shard(index, resources, torch.device(device.type, number)))


class GpuIvfSearcher(GpuSearcher):
    """faiss.GpuIndexIVFFlat by inner product. nprobe is at most MAX_K."""

    kind, exhaustive, tolerance = "ivf", False, 1e-4

    def __init__(
        self, centroids: np.ndarray, device: torch.device, gpus: Sequence[int], *, nprobe: int | None = None
    ) -> None:
        """centroids: float32 [nlist, d1]."""
        super().__init__(device)
        faiss = load_faiss()
        self.nlist, d1 = centroids.shape
        self.nprobe = min(MAX_K, automatic_nprobe(self.nlist) if nprobe is None else min(nprobe, self.nlist))
        quantizer = faiss.IndexFlatIP(d1)
        quantizer.add(centroids)
        empty = faiss.IndexIVFFlat(quantizer, d1, self.nlist, faiss.METRIC_INNER_PRODUCT)
        empty.is_trained = True
        for number in gpus:
            config = faiss.GpuIndexIVFFlatConfig()
            config.device, config.use_cuvs = number, False
            resources = _resources()
            index = faiss.GpuIndexIVFFlat(resources, empty, config)
            index.nprobe = self.nprobe
            self._shards.append(_Shard(index, resources, torch.device(device.type, number)))
        self._centroids = to_device(centroids, device)

    def assign(self, keys: np.ndarray) -> np.ndarray:
        """int32 [n]: the nearest centroid of unit rows, for the saved clustering."""
        return Transfer([(to_device(keys, self.device) @ self._centroids.T).argmax(dim=1).int()]).arrays()[0]


def _resources() -> Any:
    resources = load_faiss().StandardGpuResources()
    resources.setTempMemory(TEMP_BYTES)
    return resources
