"""The facts of one database as prompts state them, for any thread that reads requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.store import Snapshot, Store


class Statements:
    """Shows the newest generation of what lies at a path, whatever generation the worker answers from."""

    def __init__(self, path: Path, check: Callable[[DatabaseConfig], None]) -> None:
        """check: raises NeuralDBError where a database with these settings is not the model's."""
        self._path, self._check = path, check
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._snapshot: Snapshot
        self._grounder: Grounder | None = None  # made when it is needed: reading the names takes time

    @contextmanager
    def newest(self) -> Iterator[Newest]:
        """The newest generation, for this thread alone while the block runs.

        Raises:
            NeuralDBError: it cannot be read, or was built with another model.
        """
        with self._lock:
            self._refresh()
            store = self._store
            assert store is not None
            yield Newest(
                self._snapshot, self._ready, lambda: store.catalog.generation_record(self._snapshot.generation).facts
            )

    def close(self) -> None:
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._store = self._grounder = None

    def _refresh(self) -> None:
        if self._store is not None and self._store.continues(self._snapshot):
            if self._store.generation != self._snapshot.generation:
                self._snapshot = self._store.snapshot(like=self._snapshot)
            return
        store = Store(self._path)
        try:
            self._check(store.config())
            snapshot = store.snapshot()
        except BaseException:
            store.close()
            raise
        if self._store is not None:
            self._store.close()
        self._store, self._snapshot, self._grounder = store, snapshot, None

    def _ready(self) -> Grounder:
        if self._grounder is None:
            self._grounder = Grounder(self._snapshot)
        self._grounder.refresh(self._snapshot)
        return self._grounder


class Newest:
    """One generation, as long as it is lent."""

    def __init__(self, snapshot: Snapshot, grounder: Callable[[], Grounder], facts: Callable[[], int]) -> None:
        self.config, self.generation = snapshot.config, snapshot.generation
        self._grounder, self._facts = grounder, facts

    @property
    def facts(self) -> int:
        """How many live facts it has."""
        return self._facts()

    @property
    def grounder(self) -> Grounder:
        """What puts its facts into prompts."""
        return self._grounder()
