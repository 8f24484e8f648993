"""A store's snapshot without a store: the same interface, in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class FakeSnapshot:
    """keys: float [n, d1], stored as float16 rows of unit length; each its own entry unless told."""

    def __init__(
        self, keys: np.ndarray, residuals: np.ndarray | None = None, *, entries: np.ndarray | None = None,
        tokens: np.ndarray | None = None, live: np.ndarray | None = None, epoch: int = 0, generation: int = 1,
        block: int = 700,
    ) -> None:  # fmt: skip
        keys = np.asarray(keys, np.float64)
        norms = np.linalg.norm(keys, axis=1, keepdims=True)
        self.stored = (keys / np.where(norms > 0, norms, 1)).astype(np.float16)
        self.n_keys, self.d1 = keys.shape
        self.key_entries = np.arange(self.n_keys) if entries is None else np.asarray(entries, np.int64)
        self.key_tokens = np.asarray(np.full(self.n_keys, -1) if tokens is None else tokens, np.int32)
        self.live = np.ones(self.n_keys, bool) if live is None else np.asarray(live, bool)
        self.n_entries = int(self.key_entries.max(initial=-1)) + 1
        table = np.zeros((self.n_entries, 4)) if residuals is None else residuals
        self.table = np.asarray(table, np.float32)
        self.d2 = self.table.shape[1]
        self.epoch = self.lineage = epoch
        self.generation, self.block = generation, block
        self.rows_read = 0  # residual rows gathered so far
        self.blocks_read = 0  # key rows handed out in blocks so far

    def key_blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        while start < self.n_keys:
            stop = min(self.n_keys, (start // self.block + 1) * self.block)
            self.blocks_read += stop - start
            yield start, self.stored[start:stop]
            start = stop

    def keys(self, positions: np.ndarray) -> np.ndarray:
        return self.stored[positions]

    def residuals(self, entry_ids: np.ndarray) -> np.ndarray:
        self.rows_read += len(entry_ids)
        return self.table[entry_ids]

    def fact_ids(self, entry_id: int) -> tuple[str, ...]:
        return (f"fact{entry_id}",)
