"""What routes work with, kept on the application."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from neuraldb_faiss.serving.delivery import Deliveries
from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.settings import Limits
from neuraldb_faiss.serving.tenants import Tenants


@dataclass
class Service:
    """One model, its databases and its worker."""

    tenants: Tenants
    engine: Engine
    prompts: Prompts
    deliveries: Deliveries
    limits: Limits
    metrics: Metrics
    started: float = field(default_factory=time.time)

    @staticmethod
    def of(request: Request) -> Service:
        return cast(Service, request.app.state.service)


def bearer(request: Request) -> str | None:
    """The token that a request brings."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def database_header(request: Request) -> str | None:
    """The database that a request's header names."""
    return request.headers.get("x-neuraldb")
