"""Who is told how many facts are solved, while a piece of a build is still under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Call `listener` inside the block with the number of facts of every batch that was solved."""
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


def tell_solved(facts: int) -> None:
    """Say that so many more facts are solved."""
    listener = _listener.get()
    if listener is not None:
        listener(facts)
