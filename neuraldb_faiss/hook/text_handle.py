"""Handle for text delivery: facts are stated in the prompt, and no hook is registered."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from neuraldb_faiss.errors import CompactedError
from neuraldb_faiss.grounding.delivery import Delivering, Delivery
from neuraldb_faiss.hook.trace import Trace


class TextHandle(Delivering):
    """As `Handle`, for the delivery "text": the model is not touched, and `ground` states the facts.

    It answers from the generation it was attached with until `refresh()`.

    Attributes: calls and hits (both 0).
    """

    calls = hits = 0

    def __init__(
        self, source: Any, newest: Callable[[], Any], tokenizer: Any = None, database: str | None = None
    ) -> None:  # fmt: skip
        """source: the snapshot that answers. newest: gives the one that `refresh()` moves to."""
        self._source, self._newest, self._database = source, newest, database
        self._delivery = Delivery("text", False, lambda: self._source, tokenizer)

    def __repr__(self) -> str:
        return f"<TextHandle of {self._database or 'a database'}: facts are stated, nothing fires>"

    def _renew(self, error: CompactedError) -> None:
        self.refresh()
        warnings.warn(f"{error}: the newest generation answers from now on", stacklevel=3)

    def trace(self) -> Trace:
        """Nothing: what is stated does not fire."""
        return Trace()

    def clear_trace(self) -> None:
        """Nothing to clear."""

    def disabled(self) -> AbstractContextManager[None]:
        """As the model is."""
        return nullcontext()

    def refresh(self, source: Any = None) -> None:
        """State the facts of another generation: `source`, or the newest."""
        self._source = self._newest() if source is None else source

    def remove(self) -> None:
        """Nothing is hooked."""

    def __enter__(self) -> TextHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
