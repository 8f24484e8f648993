"""Start a server, and stop it cleanly."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter

from neuraldb_faiss.editing.editor import model_name
from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.app import make_app
from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.prompts import Prompts
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import Limits, Tokens
from neuraldb_faiss.serving.tenants import Tenants

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """Serves a model with databases attached, on a socket that is bound already."""

    def __init__(
        self, model: Any, tokenizer: Any, databases: Mapping[str, Path], bound: socket.socket, *,
        tokens: Tokens, limits: Limits, ready: Callable[[Sequence[str]], None], routers: Sequence[APIRouter] = (),
    ) -> None:  # fmt: skip
        """Attach the databases.

        Args:
            ready: called with the names of all models once requests are answered. routers: further routes.

        Raises:
            NeuralDBError: a database cannot be opened, or was built with another model.
        """
        metrics = Metrics()
        tenants = Tenants(model, tokenizer, databases, tokens, _name(model), limits)
        self._service = Service(
            tenants, Engine(model, tokenizer, tenants, limits, metrics), Prompts(model, tokenizer, limits), limits,
            metrics,
        )  # fmt: skip
        self._bound = bound
        self._ready = ready
        super().__init__(
            uvicorn.Config(
                make_app(self._service, routers), log_config=None, access_log=False, lifespan="on", ws="none",
                proxy_headers=False, server_header=False, timeout_graceful_shutdown=max(1, round(limits.grace)),
            )
        )  # fmt: skip

    def serve_until_told(self) -> None:
        """Answer requests until SIGTERM, SIGINT or `should_exit`; then finish what runs, and return."""
        # uvicorn sends itself again, to the handlers of before, what it was stopped by: that is us, and we are done.
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            self.run(sockets=[self._bound])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready(self._service.tenants.names)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.engine.close(self._service.limits.grace)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to this address, not listening yet; port 0 for a free one. Raises ServeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        told = f"cannot serve on {host}, port {port}: {error.strerror}; name another --host or --port"
        raise ServeError(told) from None
    return bound


def _name(model: Any) -> str:
    """What clients call the model: its name on the hub, or its folder's."""
    name = model_name(model) or "model"
    return Path(name).name if Path(name).is_absolute() else name
