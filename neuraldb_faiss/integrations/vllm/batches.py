"""vLLM's batches as texts: which rows of a step belong to which request, and what went in before them.

vLLM lays the tokens of all requests of a step one behind the other: some decode one token, some bring a chunk of their
prompt, and some begin in the middle because a cached prefix holds what came before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from neuraldb_faiss.guard.gate import UNKNOWN, Tokens
from neuraldb_faiss.hook.kv_history import KEPT
from neuraldb_faiss.index.transfers import Transfer


@dataclass(slots=True, eq=False)
class Step:
    """One step of the scheduler. requests: their ids, in the batch's order. counts, computed: int64 [R], each request's
    tokens in this step, and before it. ids: [>= N], the tokens, read when they are needed. done: looked up."""

    requests: Sequence[str]
    counts: np.ndarray
    computed: np.ndarray
    ids: torch.Tensor
    done: bool = False


class Requests:
    """What is known of the running requests' tokens: their prompts, and what went in since."""

    def __init__(self) -> None:
        self._ids: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def begin(self, request: str, prompt: Sequence[int] | None) -> None:
        """A request comes, or comes again with a longer prompt."""
        self._ids[request] = np.array([] if prompt is None else prompt, np.int64)

    def end(self, requests: Iterable[str]) -> None:
        for request in requests:
            self._ids.pop(request, None)

    def before(self, request: str, length: int) -> np.ndarray:
        """int64 [KEPT]: the last of a request's first `length` tokens, after -1 where there are fewer. UNKNOWN for one
        that nobody told of."""
        out = np.full(KEPT, -1, np.int64)
        first = max(0, length - KEPT)
        if length:
            out[first - length :] = UNKNOWN
            known = self._ids.get(request, out[:0])[first:length]
            out[first - length : first - length + len(known) or None] = known
        return out

    def put(self, request: str, start: int, ids: np.ndarray) -> None:
        """These went in at `start`."""
        known = self._ids.get(request, np.empty(0, np.int64))
        end = start + len(ids)
        if end > len(known):
            known = np.pad(known, (0, end + KEPT - len(known)), constant_values=UNKNOWN)
            self._ids[request] = known
        known[start:end] = ids

    def texts(self, step: Step, *, past: bool) -> Iterator[tuple[np.ndarray, Tokens]]:
        """(int64 [B * T] rows of the flat batch, what a gate reads of them), together every token of `step` once.

        Requests with equally many tokens make one batch of rows. past: False where no gate asks for what came before:
        then all tokens are one row, and `Tokens.past` is empty.
        """
        counts, computed = step.counts, step.computed
        total = int(counts.sum())
        ids = Transfer([step.ids[:total]]).arrays()[0].astype(np.int64)
        starts = np.cumsum(counts) - counts
        if past:
            for length in np.unique(counts).tolist():
                members = np.flatnonzero(counts == length)
                rows = starts[members][:, None] + np.arange(length)
                positions = computed[members][:, None] + np.arange(length)
                before = [self.before(step.requests[one], int(computed[one])) for one in members.tolist()]
                yield rows.reshape(-1), Tokens(positions, None, ids[rows], True, _cut(np.stack(before)))
        else:
            positions = np.arange(total) + np.repeat(computed - starts, counts)
            yield np.arange(total), Tokens(positions[None], None, ids[None], True, np.empty((1, 0), np.int64))
        for request, start, count, at in zip(step.requests, starts, counts, computed, strict=True):
            self.put(request, int(at), ids[start : start + count])


def _cut(past: np.ndarray) -> np.ndarray:
    """Without the columns that are padding in every row."""
    used = np.flatnonzero((past != -1).any(axis=0))
    return past[:, used[0] :] if len(used) else past[:, :0]
