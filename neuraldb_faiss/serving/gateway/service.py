"""Databases before an upstream server, as what the gateway's routes work with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx2
from starlette.requests import Request

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.gateway.names import GatewayDatabases
from neuraldb_faiss.serving.gateway.upstream import Target, Upstream
from neuraldb_faiss.serving.gateway.worker import ChangeWorker
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import ServerSettings


@dataclass
class GatewayService(Service):
    """The databases, what makes their changes, and the upstream server."""

    tenants: GatewayDatabases
    engine: ChangeWorker
    upstream: Upstream

    def check_add(self, database: Database) -> None:
        with database.reading() as store:
            if not store.config().has_model:
                return
        told = (
            f"the facts of {database.name} are solved by its model, which a gateway has not: add them by `neuraldb add`"
            " or where it is served, or serve a database that was built with --model none"
        )
        raise ApiError(409, told, code="needs_model")

    async def close(self) -> None:
        await super().close()
        await self.upstream.close()

    @staticmethod
    def of(request: Request) -> GatewayService:
        return cast(GatewayService, Service.of(request))

    @classmethod
    def to(
        cls, target: Target, databases: Mapping[str, Path], settings: ServerSettings, metrics: Metrics,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> GatewayService:  # fmt: skip
        """Databases (name -> folder) before the server at `target`.

        Raises:
            NeuralDBError: a database cannot be read, or the server is told to deliver what a gateway cannot.
        """
        if settings.delivery not in (None, "auto", "text"):
            raise ServeError(f"--delivery {settings.delivery}: behind a gateway facts can only be stated (text)")
        tenants = GatewayDatabases(databases, settings)
        for database in tenants:
            database.generation, found = database.read()
            database.facts = len(found)
            metrics.show(database)
        worker = ChangeWorker(settings.limits)
        return cls(tenants, worker, settings.limits, metrics, Upstream(target, settings.limits, transport))
