"""Libraries that not every user needs, and what to say where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from neuraldb_faiss.errors import EvaluationError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of the extra `name` of this package.

    Raises:
        EvaluationError: one of them is not installed; names the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        missing = error.name or str(error)
        raise EvaluationError(f"{missing} is not installed: pip install 'neuraldb-faiss[{name}]'") from None
