"""Where prompts end in the texts that a model is run over, for hooks that act where an answer begins.

A forward over a prompt ends where the prompt does. One over a prompt and its answer, as scores are made from, does not:
whoever runs it says here where the prompts end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

_lengths: ContextVar[tuple[int, ...] | None] = ContextVar("prompt_lengths", default=None)


@contextmanager
def prompts_end(lengths: Sequence[int]) -> Iterator[None]:
    """In the forwards of this thread inside the block, each row's prompt has so many tokens, padding not counted."""
    token = _lengths.set(tuple(lengths))
    try:
        yield
    finally:
        _lengths.reset(token)


def prompt_lengths(rows: int) -> np.ndarray | None:
    """int64 [rows]: what was said of a forward of so many rows; None where nothing was."""
    told = _lengths.get()
    return None if told is None or len(told) != rows else np.array(told, np.int64)
