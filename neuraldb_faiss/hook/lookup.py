"""Forward hook of the edited layer: looks every token's key up and adds the residual of the entry that fires."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss.errors import CompactedError
from neuraldb_faiss.guard.gate import Gate, Tokens
from neuraldb_faiss.hook import torch_compile
from neuraldb_faiss.hook.forward_call import Call
from neuraldb_faiss.hook.forward_context import Context
from neuraldb_faiss.hook.residual_cache import ResidualCache
from neuraldb_faiss.hook.trace import Fire, Namer, Trace
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates, decide
from neuraldb_faiss.index.transfers import Transfer, on_gpu, to_device

Names = dict[int, tuple[str, ...]]  # entry -> ids of the facts it serves

MAX_UNDECIDED = 256  # forwards whose outcome may wait on the GPU for somebody who asks


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.disabled = 0


@dataclass(frozen=True, slots=True)
class _Undecided:
    """Candidates of a forward whose outcome is still on its way from the GPU.

    places: int64 [m], their tokens' indices in the flattened `tokens`. entries: int64 [m].
    """

    places: np.ndarray
    tokens: Tokens
    entries: np.ndarray
    facts: Names
    outcome: Transfer  # fires bool [m], cosines float64 [m]


class Lookup:
    """g(k) of eq. 11 and 12 (arXiv 2507.18028), as a forward hook on one down-projection.

    Where the keys lie on a GPU the host names the candidates, and the GPU decides and adds: the host waits once a
    forward, to learn the tokens or what came near, and reads later what fired.
    """

    def __init__(
        self, gate: Gate, context: Context, trace_size: int, renew: Callable[[CompactedError], None],
        decode: Callable[[int], str] | None = None,
    ) -> None:  # fmt: skip
        """trace_size: how many firings are remembered. renew: has the gate answer from the newest generation, because
        the one it answers from was compacted away. decode: a token id's text, for the trace."""
        self.gate = gate
        self._renew = renew
        self._namer = Namer(lambda: gate.source, decode)
        self.calls = 0
        self.removed = False
        self._hits = 0
        self._context = context
        self._residuals = ResidualCache()
        self._trace: deque[Fire] = deque(maxlen=trace_size)
        self._undecided: deque[_Undecided] = deque()
        self._lock = threading.Lock()
        self._thread = _ThreadState()
        self._eagerly = torch.compiler.disable(self.__call__)
        self._number = torch_compile.number(self)

    @property
    def hits(self) -> int:
        with self._lock:
            self._settle()
            return self._hits

    @torch.no_grad()
    def find(self, keys: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows of `keys` [..., d1], flattened, and what to add there, [m, d2] of `dtype`; None for nothing."""
        while True:
            try:
                return self._find(keys, dtype)
            except CompactedError as error:
                self._renew(error)

    def _find(self, keys: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
        shape, flat = keys.shape[:-1], keys.detach().reshape(-1, keys.shape[-1])
        if on_gpu(keys):
            candidates = self.gate.candidates(flat, lambda: self._context.tokens(shape))
            if candidates is not None:
                return self._on_device(candidates, flat, shape, dtype)
        tokens = self._context.tokens(shape)
        found = self.gate.fired(flat, tokens)
        facts = self._names(found.source, found.entries)
        with self._lock:
            self._settle()
            self.calls += 1
            self._note(found.places, tokens, found.entries, found.scores, facts)
        if not len(found.places):
            return None
        residuals = to_device(found.source.residuals(found.entries), keys.device)
        return to_device(found.places, keys.device), residuals.to(dtype)

    def _on_device(
        self, candidates: Candidates, keys: torch.Tensor, shape: torch.Size, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        if len(candidates):
            source, rows = candidates.source, candidates.rows
            decision = decide(candidates, keys, self.gate.gamma)
            entries = source.key_entries[candidates.positions]
            facts = self._names(source, entries)
            residuals = self._residuals.gather(source, entries, keys.device, dtype)
            tokens = self._context.tokens(shape)
            outcome = Transfer([decision.fires, decision.cosines])
        with self._lock:
            self.calls += 1
            if not len(candidates):
                return None
            self._undecided.append(_Undecided(rows, tokens, entries, facts, outcome))
            while len(self._undecided) > MAX_UNDECIDED or (self._undecided and self._undecided[0].outcome.done):
                self._settle_one()
        return to_device(rows, keys.device), torch.where(decision.fires[:, None], residuals, 0)

    def _settle(self) -> None:
        """Read, oldest first, what fired on the GPU; with the lock held."""
        while self._undecided:
            self._settle_one()

    def _settle_one(self) -> None:
        one = self._undecided.popleft()
        fires, cosines = one.outcome.arrays()
        self._note(one.places[fires], one.tokens, one.entries[fires], cosines[fires], one.facts)

    def _note(self, places: np.ndarray, tokens: Tokens, entries: np.ndarray, scores: np.ndarray, facts: Names) -> None:
        self._hits += len(places)
        width = tokens.positions.shape[1]
        for place, entry, score in zip(places.tolist(), entries.tolist(), scores.tolist(), strict=True):
            row, column = divmod(place, width)
            token = None if tokens.ids is None else int(tokens.ids[row, column])
            self._trace.append(
                Fire(row, int(tokens.positions[row, column]), entry, facts.get(entry, ()), score, token, self._namer)
            )

    def _names(self, source: EntrySource, entries: np.ndarray) -> Names:
        """The facts that these entries serve, for the trace: asked for at once, while the catalog has them."""
        return {entry: source.fact_ids(entry) for entry in set(entries.tolist())} if self._trace.maxlen else {}

    def hook(self, module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """The forward hook, in eager mode and as torch.compile traces it."""
        if torch.compiler.is_compiling():
            call = self._context.traced_call()
            if call is not None:
                self._context.looked_in_trace()
                return torch_compile.lookup(args[0], output, call, self._number)
        return self._eagerly(module, args, output)

    def added(self, keys: torch.Tensor, output: torch.Tensor, call: Call) -> torch.Tensor:
        """`output` with what fires added, in the forward `call`; always a new tensor."""
        with self._context.told(call):
            changed = self(None, (keys,), output)
        return output.clone() if changed is None else changed

    def __call__(self, module: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        self._context.looked()
        # Compiled code may go on calling a hook that was removed since; it then changes nothing.
        if self.is_off or not args[0].numel():
            return None
        found = self.find(args[0], output.dtype)
        if found is None:
            return None
        rows, residuals = found[0].to(output.device), found[1].to(output.device)
        flat = output.reshape(-1, output.shape[-1])
        return flat.index_add(0, rows, residuals).reshape(output.shape)  # a copy: others may hold the output

    @property
    def is_off(self) -> bool:
        """Whether it changes nothing in this thread: removed, or disabled."""
        return self.removed or bool(self._thread.disabled)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        self._thread.disabled += 1
        try:
            yield
        finally:
            self._thread.disabled -= 1

    def trace(self) -> Trace:
        """What fired, oldest first, with the facts that each entry served in the generation that answered."""
        with self._lock:
            self._settle()
            return Trace(self._trace)

    def clear_trace(self) -> None:
        with self._lock:
            self._settle()
            self._trace.clear()
