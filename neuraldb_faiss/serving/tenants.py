"""The databases that one model serves, each for itself."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Unpack

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.hook import Fire, Handle, Shown, attach
from neuraldb_faiss.hook.text_handle import TextHandle
from neuraldb_faiss.models.identity import check_model
from neuraldb_faiss.options import FactFilter
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.row_gate import RowGate
from neuraldb_faiss.serving.settings import UNEDITED, Limits, Tokens
from neuraldb_faiss.serving.statements import Statements
from neuraldb_faiss.store import Snapshot, Store, StoredFact


class Tenant:
    """One database, attached to the model for the rows that ask for it.

    The worker's thread alone uses it, but for `name`, `path`, `statements`, `read` and `check`.

    Attributes: statements: its facts as prompts state them.
    """

    def __init__(self, name: str, path: Path, model: Any, tokenizer: Any, trace_size: int) -> None:
        """Raises NeuralDBError: no database there, or one of another model."""
        self.name = name
        self.path = path
        self._model, self._tokenizer, self._trace_size = model, tokenizer, trace_size
        self._open()
        self.statements = Statements(path, self._check)

    def _open(self) -> None:
        """Attach what lies at the path now, as a whole. Where it cannot be, nothing changes here."""
        store = Store(self.path)
        try:
            db = NeuralDB(store)
            gate, self._handle = self._attached(store, db)
        except BaseException:
            store.close()
            raise
        self._store, self._db, self._gate = store, db, gate
        self._belongs_to = _belongs_to(db.config)
        self.generation, self.facts = db.generation, len(db)

    def _attached(self, store: Store, db: NeuralDB) -> tuple[RowGate | None, Handle | TextHandle]:
        """Its gate and handle on the model; one that was built without a model has no gate, for nothing fires."""

        def newest() -> Snapshot:
            return store.snapshot(like=db.snapshot)

        if not db.config.has_model:
            return None, TextHandle(db.snapshot, newest)
        site = check_model(db.config, self._model)
        gate = RowGate(db.gate(self._model, self._tokenizer))
        return gate, attach(gate, self._model, site=site, shown=Shown(self._trace_size), newest=newest)

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

    def read(self, **where: Unpack[FactFilter]) -> tuple[int, list[StoredFact]]:
        """The newest generation and its facts that fit (see `Catalog.facts`), for any thread. Raises as `check`."""
        with self._reading() as store:
            generation = store.generation
            return generation, list(store.catalog.facts(generation, **where))

    def check(self) -> None:
        """For any thread: whether what lies at the path can answer, so that it may be read and changed.

        Raises NeuralDBError where it cannot be read, or was built with another model.
        """
        with self._reading():
            pass

    @contextmanager
    def _reading(self) -> Iterator[Store]:
        """What lies at the path, opened anew: so it is never one that was replaced."""
        with closing(Store(self.path)) as store:
            self._check(store.config())
            yield store

    def _check(self, config: DatabaseConfig) -> None:
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

    def close(self) -> None:
        self._handle.remove()
        self._store.close()
        self.statements.close()


def _belongs_to(config: DatabaseConfig) -> tuple[Any, ...]:
    """What decides whether a database with these settings fits a model."""
    return (config.fingerprint, config.layer, config.ffn_module, config.d1, config.d2)


class Tenants:
    """All of them, and who may touch which."""

    def __init__(
        self, model: Any, tokenizer: Any, databases: Mapping[str, Path], tokens: Tokens, model_name: str, limits: Limits
    ) -> None:
        """Raises NeuralDBError where a database cannot be opened or attached; none stays attached then."""
        self.model_name = model_name
        self._tokens = tokens
        self._all: dict[str, Tenant] = {}
        try:
            for name, path in databases.items():
                self._all[name] = Tenant(name, path, model, tokenizer, limits.batch_tokens)
        except NeuralDBError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._all.values())

    def close(self) -> None:
        for tenant in self:
            tenant.close()

    # ---- which one a request means

    @property
    def names(self) -> list[str]:
        """What `model` of a request may be, by whatever token."""
        return self._models(self._all)

    def models(self, token: str | None) -> list[str]:
        """`names` without those of databases that this token does not open."""
        return self._models(name for name, tenant in self._all.items() if self._opens(tenant, token))

    def _models(self, names: Iterable[str]) -> list[str]:
        return [self.model_name, *(f"{self.model_name}+{name}" for name in (*names, UNEDITED))]

    def of_model(self, model: str, header: str | None, token: str | None) -> Tenant | None:
        """The database that a request for this model means; None for the model alone.

        Args:
            model: the model's name, alone or with "+" and a database's. header: X-NeuralDB, a database's name.

        Raises:
            ApiError: there is none such, the two contradict each other, or the token does not open it.
        """
        alone, plus, named = model.partition(f"{self.model_name}+")
        if model != self.model_name and (alone or not plus):
            raise _no_model(model)
        if plus and header is not None and named != header:
            raise ApiError(400, f"the model names the database {named!r}, X-NeuralDB names {header!r}", param="model")
        name = named if plus else header
        if name is None:
            name = next(iter(self._all)) if len(self._all) == 1 else UNEDITED
        if name == UNEDITED:
            return None
        if name not in self._all:
            raise _no_model(model) if plus else _no_database(name)
        return self._opened(self._all[name], token)

    def of_header(self, header: str | None, token: str | None) -> Tenant:
        """The database that a request about facts means. Raises ApiError as `of_model`."""
        if header is None:
            if len(self._all) > 1:
                raise ApiError(
                    400, "name the database in the header X-NeuralDB", param="X-NeuralDB", code="no_database"
                )  # fmt: skip
            header = next(iter(self._all))
        if header not in self._all:
            raise _no_database(header)
        return self._opened(self._all[header], token)

    def check_change(self, tenant: Tenant, token: str | None) -> None:
        """Raises ApiError unless the token may change this database's facts."""
        needed = self._tokens.own.get(tenant.name, self._tokens.common)
        if needed is None:
            raise ApiError(
                403, "facts cannot be changed here: start the server with --token, or with NEURALDB_TOKEN set",
                code="changes_off",
            )  # fmt: skip
        _check(needed, token)

    def _opened(self, tenant: Tenant, token: str | None) -> Tenant:
        if not self._opens(tenant, token):
            _check(self._tokens.own[tenant.name], token)
        return tenant

    def _opens(self, tenant: Tenant, token: str | None) -> bool:
        needed = self._tokens.own.get(tenant.name)
        return needed is None or (token is not None and _same(needed, token))


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogateescape"))


def _check(needed: str, token: str | None) -> None:
    if token is None or not _same(needed, token):
        told = "needs its token" if token is None else "is not opened by this token"
        raise ApiError(
            401, f"this {told}: send the header Authorization: Bearer TOKEN", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip


def _no_model(name: str) -> ApiError:
    message = f"there is no model {name!r}: GET /v1/models lists them"
    return ApiError(404, message, param="model", code="model_not_found")


def _no_database(name: str) -> ApiError:
    return ApiError(404, f"there is no database {name!r}", param="X-NeuralDB", code="no_database")
