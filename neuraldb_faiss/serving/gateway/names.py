"""Names of the upstream server's models, with databases behind them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.serving.databases import Database, Databases
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.settings import UNEDITED, ServerSettings


class GatewayDatabases(Databases[Database]):
    """The databases before an upstream server, whose models are called M, M+DATABASE and M+none."""

    def __init__(self, databases: Mapping[str, Path], settings: ServerSettings) -> None:
        """Raises NeuralDBError where one cannot be read."""
        every = {name: Database(name, path) for name, path in databases.items()}
        try:
            for database in every.values():
                database.check()
        except NeuralDBError:
            for database in every.values():
                database.close()
            raise
        super().__init__(every, settings.tokens, "", settings.default)

    @property
    def names(self) -> list[str]:
        """Of the databases, as they stand behind a model's name."""
        return [f"+{database.name}" for database in self]

    def behind(self, model: str, token: str | None) -> list[str]:
        """A model's names, without those of databases that this token does not open."""
        own = [database.name for database in self if self.opens(database, token)]
        return [model, *(f"{model}+{name}" for name in (*own, UNEDITED))]

    def split(self, model: str, header: str | None, token: str | None) -> tuple[str, Database | None]:
        """The upstream server's name of a model, and the database that is meant; None for the model alone.

        Args:
            model: with a database's name behind its last plus, or without. header: X-NeuralDB, a database's name.

        Raises:
            ApiError: there is no such database, the two contradict each other, or the token does not open it.
        """
        alone, plus, named = model.rpartition("+")
        if plus and alone and (named == UNEDITED or any(named == database.name for database in self)):
            if header is not None and header != named:
                raise ApiError(
                    400, f"the model names the database {named!r}, X-NeuralDB names {header!r}", param="model"
                )
            return alone, self.of_name(named, token)
        return model, self.of_name(header, token)
