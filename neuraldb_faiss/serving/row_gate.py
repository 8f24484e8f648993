"""A database that answers only some rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.guard.gate import Fired, Gate, Tokens
from neuraldb_faiss.index.base import EntrySource


class RowGate:
    """Another gate, asked only about the rows that belong to its database; none at first.

    Keys and texts of other rows never reach the other gate. With no rows, nothing is looked up at all: so a solver
    may run the model while databases are attached to it.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.guard = gate.guard
        self.wants_past = gate.wants_past
        self._rows = np.empty(0, np.int64)
        self._batch = 0

    def answer(self, rows: Sequence[int], batch: int) -> None:
        """From now on, answer these rows (ascending) of batches of this many, and no others."""
        self._rows, self._batch = np.array(rows, np.int64), batch

    @property
    def gamma(self) -> float:
        return self._gate.gamma

    @property
    def source(self) -> EntrySource:
        return self._gate.source

    def refresh(self, source: Any) -> None:
        self._gate.refresh(source)

    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        if not len(self._rows):
            nothing = np.empty(0, np.int64)
            return Fired(nothing, nothing, np.empty(0, np.float32), self.source)
        if len(self._rows) == self._batch:
            return self._gate.fired(keys, tokens)
        found = self._gate.fired(self._pick(keys), self._texts(tokens))
        return replace(found, places=self._places(found.places, len(keys)))

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Any:
        """As `fired`, where the keys lie on a GPU. None: ask `fired`."""
        if not len(self._rows):
            return None
        if len(self._rows) == self._batch:
            return self._gate.candidates(keys, tokens)
        found = self._gate.candidates(self._pick(keys), lambda: self._texts(tokens()))
        return None if found is None else replace(found, rows=self._places(found.rows, len(keys)))

    def _pick(self, keys: torch.Tensor) -> torch.Tensor:
        rows = torch.from_numpy(self._rows).to(keys.device)
        return keys.reshape(self._batch, -1, keys.shape[-1])[rows].reshape(-1, keys.shape[-1])

    def _texts(self, tokens: Tokens) -> Tokens:
        """Those of our rows."""
        rows = self._rows
        return replace(
            tokens,
            positions=tokens.positions[rows],
            real=None if tokens.real is None else tokens.real[rows],
            ids=None if tokens.ids is None else tokens.ids[rows],
            past=tokens.past[rows],
            ends=None if tokens.ends is None else tokens.ends[rows],
        )

    def _places(self, places: np.ndarray, tokens: int) -> np.ndarray:
        """Numbers of tokens in our rows as numbers in the whole batch of so many tokens."""
        width = tokens // self._batch
        return self._rows[places // width] * width + places % width
