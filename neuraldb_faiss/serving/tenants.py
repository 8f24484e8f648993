"""Databases attached to the model that serves them, each for its own rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.guard.named import Named, NamesSubjects
from neuraldb_faiss.hook import Fire, Handle, Shown, attach
from neuraldb_faiss.hook.text_handle import TextHandle
from neuraldb_faiss.inference.explain import site_inputs, tokens_of
from neuraldb_faiss.models.identity import check_model
from neuraldb_faiss.serving.databases import Database, Databases
from neuraldb_faiss.serving.row_gate import RowGate
from neuraldb_faiss.serving.settings import ServerSettings
from neuraldb_faiss.store import Snapshot, Store, StoredFact

_Names = Callable[[Sequence[int]], list[Named]]


class Tenant(Database):
    """One database, attached to the model for the rows that ask for it.

    The worker's thread alone uses it, but for what any `Database` has.
    """

    def __init__(self, name: str, path: Path, model: Any, tokenizer: Any, trace_size: int) -> None:
        """Raises NeuralDBError: no database there, or one of another model."""
        super().__init__(name, path)
        self._model, self._tokenizer, self._trace_size = model, tokenizer, trace_size
        self._open()

    def _open(self) -> None:
        """Attach what lies at the path now, as a whole. Where it cannot be, nothing changes here."""
        store = Store(self.path)
        try:
            db = NeuralDB(store)
            gate, self._names, self._handle = self._attached(store, db)
        except BaseException:
            store.close()
            raise
        self._store, self._db, self._gate = store, db, gate
        self._belongs_to = _belongs_to(db.config)
        self.generation, self.facts = db.generation, len(db)

    def _attached(self, store: Store, db: NeuralDB) -> tuple[RowGate | None, _Names, Handle | TextHandle]:
        """Its gate, what tells which entries a text names, and its handle on the model; one that was built without a
        model has no gate, for nothing fires."""

        def newest() -> Snapshot:
            return store.snapshot(like=db.snapshot)

        if not db.config.has_model:
            return None, lambda ids: [], TextHandle(db.snapshot, newest)
        site = check_model(db.config, self._model)
        plain = db.gate(self._model, self._tokenizer)
        gate = RowGate(plain)

        def names(ids: Sequence[int]) -> list[Named]:
            keys = site_inputs(self._model, site, ids)
            return plain.named(keys, tokens_of(ids)) if isinstance(plain, NamesSubjects) else []

        return gate, names, attach(gate, self._model, site=site, shown=Shown(self._trace_size), newest=newest)

    def refresh(self) -> None:
        """Show the newest generation, or the database that took the folder's place.

        Raises NeuralDBError where it cannot be read, or was built with another model.
        """
        if not self._store.continues(self._db.snapshot):
            handle, store = self._handle, self._store
            self._open()
            handle.remove()
            store.close()
        elif self._store.generation != self.generation:
            self._db.refresh()
            self._handle.refresh(self._db.snapshot)
            self.facts = len(self._db)
            self.generation = self._db.generation

    def is_current(self) -> bool:
        """Whether the generation shown is the newest; False too where that cannot be known."""
        try:
            return self._store.continues(self._db.snapshot) and self._store.generation == self.generation
        except NeuralDBError:
            return False

    def check_config(self, config: DatabaseConfig) -> None:
        """Raises NeuralDBError where a database with these settings was built with another model."""
        if config.has_model and _belongs_to(config) != self._belongs_to:
            check_model(config, self._model)

    def answer(self, rows: Sequence[int], batch: int) -> None:
        """Fire in these rows of batches of this many, and in no others."""
        if self._gate is not None:
            self._gate.answer(rows, batch)

    @property
    def hits(self) -> int:
        """Tokens that fired, ever."""
        return self._handle.hits

    def trace(self) -> list[Fire]:
        """What fired since `clear_trace`."""
        return self._handle.trace()

    def clear_trace(self) -> None:
        self._handle.clear_trace()

    def facts_of(self, entry: int) -> list[StoredFact]:
        """The facts that an entry serves in the generation shown."""
        return self._db.facts(entry=entry)

    def named(self, ids: Sequence[int]) -> list[Named]:
        """The entries whose subjects a text names, where the guard reads names; one forward to the layer is made."""
        return self._names(ids)

    @property
    def gate(self) -> tuple[float, str] | None:
        """γ and the guard's name; None where nothing can fire."""
        return None if self._gate is None else (self._db.gamma, self._db.guard)

    def close(self) -> None:
        self._handle.remove()
        self._store.close()
        super().close()


def _belongs_to(config: DatabaseConfig) -> tuple[Any, ...]:
    """What decides whether a database with these settings fits a model."""
    return (config.fingerprint, config.layer, config.ffn_module, config.d1, config.d2)


class Tenants(Databases[Tenant]):
    """The databases that are attached to one model."""

    def __init__(
        self, model: Any, tokenizer: Any, databases: Mapping[str, Path], settings: ServerSettings, model_name: str
    ) -> None:
        """Raises NeuralDBError where a database cannot be opened or attached; none stays attached then."""
        attached: dict[str, Tenant] = {}
        try:
            for name, path in databases.items():
                attached[name] = Tenant(name, path, model, tokenizer, settings.limits.batch_tokens)
        except NeuralDBError:
            for tenant in attached.values():
                tenant.close()
            raise
        super().__init__(attached, settings.tokens, model_name, settings.default)
