"""What routes work with, kept on the application. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from fastapi import APIRouter
from starlette.requests import Request

from neuraldb_faiss.serving.databases import Databases
from neuraldb_faiss.serving.errors import ApiError, loading
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.settings import Limits


class Worker(Protocol):
    """Makes changes, one after the other, in a thread of its own."""

    @property
    def alive(self) -> bool:
        """Whether new work is taken."""

    def start(self) -> None: ...

    def change(self, job: Any) -> None:
        """Queue a change (`jobs.Job`). Raises ApiError where too many wait, or the server stops."""

    def job(self, name: str) -> Any:
        """The change with this id; None where there is none."""

    def close(self, grace: float) -> None:
        """Take nothing new; what is not done in `grace` seconds is not made."""

    def join(self) -> None:
        """Wait until all is finished."""


@dataclass
class Service:
    """The databases that are served, and what changes them."""

    tenants: Databases[Any]
    engine: Worker
    limits: Limits
    metrics: Metrics
    started: float = field(default_factory=time.time, init=False)

    def check_fact(self, text: str) -> None:
        """Raises ApiError for a fact's prompt and target that are too long to be served."""
        # Of UTF-8, four bytes a token: there is no tokenizer here.
        tokens = -(-len(text.encode("utf-8", "replace")) // 4)
        if tokens > self.limits.prompt_tokens:
            told = f"the prompt has some {tokens} tokens: this server allows {self.limits.prompt_tokens}"
            raise ApiError(400, told, param="prompt", code="context_length_exceeded")

    def check_add(self, database: Any) -> None:
        """Raises ApiError where this server cannot add facts to a database, or change any."""

    async def close(self) -> None:
        """When the worker has stopped."""
        self.tenants.close()

    @staticmethod
    def of(request: Request) -> Service:
        """Raises ApiError (503) while the server loads."""
        found = request.app.state.lifecycle.service
        if found is None:
            raise loading()
        return cast(Service, found)


@dataclass(frozen=True)
class Backend:
    """What answers behind a server. routers: its routes, beside those that every server has."""

    service: Service
    routers: Sequence[APIRouter] = ()


# Loads a backend, in a thread of its own, while the server answers 503 already. Raises NeuralDBError.
Load = Callable[[Metrics], Backend]


def bearer(request: Request) -> str | None:
    """The token that a request brings."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def database_header(request: Request) -> str | None:
    """The database that a request's header names."""
    return request.headers.get("x-neuraldb")
