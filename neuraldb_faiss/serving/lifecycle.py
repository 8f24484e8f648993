"""Whether a server loads, answers or stops, and what it says so long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter

from neuraldb_faiss.serving.errors import ApiError, loading
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Backend, Service

State = Literal["loading", "ready", "stopping", "failed"]


class Lifecycle:
    """Where one server stands.

    Attributes:
        metrics: counted from the first request on. service: what routes work with; None while it is loaded.
        include: adds routes to the application.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.service: Service | None = None
        self.include: Callable[[APIRouter], None] = lambda router: None
        self._stopping = False
        metrics.ready.set_function(lambda: float(self.state == "ready"))

    @property
    def state(self) -> State:
        """ "failed": the thread that answers has died, which only a new start mends."""
        if self._stopping:
            return "stopping"
        if self.service is None:
            return "loading"
        return "ready" if self.service.engine.alive else "failed"

    def serve(self, backend: Backend) -> None:
        """Answer requests with this from now on."""
        for router in backend.routers:
            self.include(router)
        backend.service.engine.start()
        self.service = backend.service

    def stop(self) -> None:
        """Say from now on that the server stops."""
        self._stopping = True

    def refusal(self) -> ApiError | None:
        """What a request is told that cannot be answered yet."""
        return loading() if self.service is None else None
