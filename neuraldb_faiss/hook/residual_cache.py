"""GPU cache of recently used residuals; the others are gathered from the memory map."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.transfers import to_device

CACHE_BYTES = 64 << 20  # on the GPU, for each attachment


class ResidualCache:
    """The last used residuals of one lineage of snapshots, in which an entry's residual never changes.

    Rows are kept in the dtype in which they are added. Where one call asks for more entries than fit, those that are
    not there yet are gathered for it and not kept.
    """

    def __init__(self, capacity_bytes: int = CACHE_BYTES) -> None:
        self._bytes = capacity_bytes
        self._lock = threading.Lock()
        self._of: tuple[Any, ...] | None = None  # lineage, width, dtype and device of what is kept
        self._table = torch.empty(0)
        self._slots: OrderedDict[int, int] = OrderedDict()  # entry -> row of the table, the longest unused first
        self._stream: Any = None

    def __len__(self) -> int:
        return len(self._slots)

    def gather(
        self, source: EntrySource, entries: np.ndarray, device: torch.device, dtype: torch.dtype
    ) -> torch.Tensor:
        """[m, d2] on `device`: the residual of each of `entries`, int64 [m]; the host does not wait."""
        wanted, place = np.unique(entries, return_inverse=True)
        with self._lock:
            self._prepare(source, device, dtype)
            new = np.array([entry not in self._slots for entry in wanted.tolist()], bool)
            fetched = to_device(source.residuals(wanted[new]), device).to(dtype) if new.any() else None
            if fetched is None or len(wanted) <= len(self._table):
                for entry in wanted[~new].tolist():  # before any is evicted
                    self._slots.move_to_end(entry)
                for entry in wanted[new].tolist():
                    full = len(self._slots) == len(self._table)
                    self._slots[entry] = self._slots.popitem(last=False)[1] if full else len(self._slots)
                if fetched is not None:
                    self._table[self._rows(wanted[new], device)] = fetched
                return self._table[self._rows(wanted[place], device)]
            rows = torch.empty((len(wanted), source.d2), dtype=dtype, device=device)
            if not new.all():
                rows[to_device(np.flatnonzero(~new), device)] = self._table[self._rows(wanted[~new], device)]
            rows[to_device(np.flatnonzero(new), device)] = fetched
            return rows[to_device(place.astype(np.int64), device)]

    def _rows(self, entries: np.ndarray, device: torch.device) -> torch.Tensor:
        return to_device(np.array([self._slots[entry] for entry in entries.tolist()], np.int64), device)

    def _prepare(self, source: EntrySource, device: torch.device, dtype: torch.dtype) -> None:
        if self._of != (source.lineage, source.d2, dtype, device):
            self._of = source.lineage, source.d2, dtype, device
            size = self._bytes // (source.d2 * dtype.itemsize)
            self._table = torch.empty((size, source.d2), dtype=dtype, device=device)
            self._slots.clear()
        if device.type == "cuda":  # rows that another stream still reads are not overwritten
            stream = torch.cuda.current_stream(device)
            if self._stream is not None and self._stream != stream:
                stream.wait_stream(self._stream)
            self._stream = stream
