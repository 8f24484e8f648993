"""The hook itself: look every token's key up, and add the residual where one fires."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neuraldb_faiss.hook.context import Context
from neuraldb_faiss.hook.gates import Gate
from neuraldb_faiss.search.searcher import EntrySource


@dataclass(frozen=True, slots=True)
class Fire:
    """One token that fired. sequence: row of its batch. position: index in its text, padding not counted."""

    sequence: int
    position: int
    entry_id: int
    fact_ids: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class _Raw:
    """A Fire whose facts nobody has asked for yet."""

    sequence: int
    position: int
    entry_id: int
    score: float
    source: EntrySource


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.disabled = 0


class Lookup:
    """g(k) of eq. 11 and 12 (arXiv 2507.18028), as a forward hook on one down-projection."""

    def __init__(self, gate: Gate, context: Context, trace_size: int) -> None:
        self.gate = gate
        self.calls = 0
        self.hits = 0
        self.removed = False
        self._context = context
        self._trace: deque[_Raw | Fire] = deque(maxlen=trace_size)
        self._lock = threading.Lock()
        self._thread = _ThreadState()

    @torch.no_grad()
    def find(self, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows of `keys` [..., d1], flattened, that fire, and residuals float32 [m, d2]; None for none."""
        tokens = self._context.tokens(keys.shape[:-1])
        found = self.gate.fired(keys.detach().reshape(-1, keys.shape[-1]), tokens)
        with self._lock:
            self.calls += 1
            self.hits += len(found.places)
            width = tokens.positions.shape[1]
            for place, entry, score in zip(found.places, found.entries, found.scores, strict=True):
                position = int(tokens.positions.reshape(-1)[place])
                self._trace.append(_Raw(int(place) // width, position, int(entry), float(score), found.source))
        if not len(found.places):
            return None
        return torch.from_numpy(found.places), torch.from_numpy(found.source.residuals(found.entries))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        # Compiled code may go on calling a hook that was removed since; it then changes nothing.
        if self.removed or self._thread.disabled or not args[0].numel():
            return None
        found = self.find(args[0])
        if found is None:
            return None
        rows, residuals = found[0].to(output.device), found[1].to(output.device, output.dtype)
        flat = output.reshape(-1, output.shape[-1])
        return flat.index_add(0, rows, residuals).reshape(output.shape)  # a copy: others may hold the output

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self._thread.disabled += 1
        try:
            yield
        finally:
            self._thread.disabled -= 1

    def trace(self) -> list[Fire]:
        """What fired, oldest first, with the facts that each entry served in the generation that answered."""
        with self._lock:
            known: dict[tuple[int, int], tuple[str, ...]] = {}
            for index, raw in enumerate(self._trace):
                if isinstance(raw, _Raw):
                    key = (id(raw.source), raw.entry_id)
                    if key not in known:
                        known[key] = tuple(raw.source.fact_ids(raw.entry_id))
                    facts = known[key]
                    self._trace[index] = Fire(raw.sequence, raw.position, raw.entry_id, facts, raw.score)
            return [fire for fire in self._trace if isinstance(fire, Fire)]

    def clear_trace(self) -> None:
        with self._lock:
            self._trace.clear()
