"""The databases of a server: which one a request means, and which tokens open it. No torch."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Generic, TypeVar, Unpack

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.options import FactFilter
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.settings import UNEDITED, Token, Tokens
from neuraldb_faiss.serving.statements import Statements
from neuraldb_faiss.store import Store, StoredFact


class Database:
    """What lies at a path, which another database may replace at any time; for any thread.

    Attributes:
        statements: its facts as prompts state them.
        generation, facts: the generation served and the number of its live facts, for the metrics.
    """

    generation: int = 0
    facts: int = 0

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.statements = Statements(path, self.check_config)

    def check_config(self, config: DatabaseConfig) -> None:
        """Raises NeuralDBError where a database with these settings cannot be served here."""

    def read(self, **where: Unpack[FactFilter]) -> tuple[int, list[StoredFact]]:
        """The newest generation and its facts that fit (see `Catalog.facts`). Raises as `check`."""
        with self.reading() as store:
            generation = store.generation
            return generation, list(store.catalog.facts(generation, **where))

    def check(self) -> None:
        """Whether what lies at the path can answer, so that it may be read and changed.

        Raises NeuralDBError where it cannot be read, or was built with another model.
        """
        with self.reading():
            pass

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """What lies at the path, opened anew: so it is never one that was replaced. Raises as `check`."""
        with closing(Store(self.path)) as store:
            self.check_config(store.config())
            yield store

    def close(self) -> None:
        self.statements.close()


D = TypeVar("D", bound=Database)


class Databases(Generic[D]):
    """All databases of a server, and who may touch which."""

    def __init__(self, every: Mapping[str, D], tokens: Tokens, model_name: str, default: str | None = None) -> None:
        """
        Args:
            every: by their names.
            model_name: what clients call the model.
            default: the database of requests that name none, or `UNEDITED`; None: the only one there is, or else none.
        """
        self.model_name = model_name
        self._tokens = tokens
        self._all = dict(every)
        self._default = next(iter(self._all)) if default is None and len(self._all) == 1 else default

    def __iter__(self) -> Iterator[D]:
        return iter(self._all.values())

    def close(self) -> None:
        for database in self:
            database.close()

    # ---- which one a request means

    @property
    def names(self) -> list[str]:
        """What `model` of a request may be, by whatever token."""
        return self._models(self._all)

    def models(self, token: str | None) -> list[str]:
        """`names` without those of databases that this token does not open."""
        return self._models(name for name, database in self._all.items() if self.opens(database, token))

    def _models(self, names: Iterable[str]) -> list[str]:
        return [self.model_name, *(f"{self.model_name}+{name}" for name in (*names, UNEDITED))]

    def of_model(self, model: str, header: str | None, token: str | None) -> D | None:
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
        if plus and named != UNEDITED and named not in self._all:
            raise _no_model(model)
        return self.of_name(named if plus else header, token)

    def of_name(self, name: str | None, token: str | None) -> D | None:
        """The database of this name, None for the model alone; without a name the default one. Raises ApiError as
        `of_model`."""
        if name is None:
            name = self._default or UNEDITED
        if name == UNEDITED:
            return None
        if name not in self._all:
            raise _no_database(name)
        return self._opened(self._all[name], token)

    def of_header(self, header: str | None, token: str | None) -> D:
        """The database that a request about facts means. Raises ApiError as `of_model`."""
        if header is None:
            if self._default in (None, UNEDITED):
                raise ApiError(
                    400, "name the database in the header X-NeuralDB", param="X-NeuralDB", code="no_database"
                )  # fmt: skip
            header = str(self._default)
        if header not in self._all:
            raise _no_database(header)
        return self._opened(self._all[header], token)

    def check_change(self, database: D, token: str | None) -> str:
        """The name of the token, which may change this database's facts. Raises ApiError where it may not."""
        needed = self._tokens.to_change(database.name)
        if not needed:
            raise ApiError(
                403, "facts cannot be changed here: start the server with --token, or with NEURALDB_TOKEN set",
                code="changes_off",
            )  # fmt: skip
        return _found(needed, token).name

    def _opened(self, database: D, token: str | None) -> D:
        needed = self._tokens.to_use(database.name)
        if needed:
            _found(needed, token)
        return database

    def opens(self, database: D, token: str | None) -> bool:
        """Whether a token, or None, may use this database."""
        needed = self._tokens.to_use(database.name)
        return not needed or _among(needed, token) is not None


def _among(tokens: Iterable[Token], given: str | None) -> Token | None:
    """The one of these that was given. All are compared, in constant time each."""
    sent = (given or "").encode("utf-8", "surrogateescape")
    found = [one for one in tokens if hmac.compare_digest(one.value.encode(), sent)]
    return found[0] if found else None


def _found(needed: Iterable[Token], given: str | None) -> Token:
    found = _among(needed, given)
    if found is None:
        told = "needs its token" if given is None else "is not opened by this token"
        raise ApiError(
            401, f"this {told}: send the header Authorization: Bearer TOKEN", code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    return found


def _no_model(name: str) -> ApiError:
    message = f"there is no model {name!r}: GET /v1/models lists them"
    return ApiError(404, message, param="model", code="model_not_found")


def _no_database(name: str) -> ApiError:
    return ApiError(404, f"there is no database {name!r}", param="X-NeuralDB", code="no_database")
