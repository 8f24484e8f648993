"""Start a server, and stop it cleanly."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import APIRouter

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.models.identity import model_name
from neuraldb_faiss.serving.app import make_app
from neuraldb_faiss.serving.connections import ACCEPTED_AT_ONCE, Connection, connection_limit
from neuraldb_faiss.serving.delivery import Deliveries
from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.logs import sparing_logs
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import ServerSettings
from neuraldb_faiss.serving.tenants import Tenants

_WAITING = 1024  # connections that the kernel holds until they are taken
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """Serves a model with databases attached, on a socket that is bound already."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        databases: Mapping[str, Path],
        bound: socket.socket,
        settings: ServerSettings,
        *,
        ready: Callable[[Sequence[str]], None],
        routers: Sequence[APIRouter] = (),
    ) -> None:
        """Attach the databases.

        Args:
            databases: name -> folder.
            bound: the socket to listen on (see `bind`).
            ready: called with the names of all models once requests are answered.
            routers: further routes.

        Raises:
            NeuralDBError: a database cannot be opened, or was built with another model; too few files can be opened.
        """
        limits, metrics = settings.limits, Metrics()
        tenants = Tenants(model, tokenizer, databases, settings, _name(model))
        prompts = Prompts(model, tokenizer, limits)
        self._service = Service(
            tenants, Engine(model, tokenizer, tenants, limits, metrics), prompts,
            Deliveries(prompts, metrics, settings.delivery), limits, metrics,
        )  # fmt: skip
        self._bound = bound
        self._ready = ready
        address = bound.getsockname()[0]
        hosts = settings.hosts or Hosts.of(address, address)
        connection: Any = partial(Connection, limits=limits, most=connection_limit())
        super().__init__(
            uvicorn.Config(
                make_app(self._service, routers, hosts), loop="asyncio", http=connection,
                ws="none", lifespan="on", log_config=None, access_log=False, proxy_headers=False, server_header=False,
                backlog=ACCEPTED_AT_ONCE, timeout_keep_alive=limits.idle,
                timeout_graceful_shutdown=max(1, round(limits.grace)),
            )
        )  # fmt: skip

    def serve_until_told(self) -> None:
        """Answer requests until SIGTERM, SIGINT or `should_exit`; then finish what runs, and return."""
        # uvicorn sends itself again, to the handlers of before, what it was stopped by: that is us, and we are done.
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            with sparing_logs():
                self.run(sockets=[self._bound])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # The event loop takes a few connections at once (`backlog`); those that the kernel holds may be more.
            self._bound.listen(_WAITING)
            self._ready(self._service.tenants.names)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.engine.close(self._service.limits.grace)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to this address, not listening yet; port 0 for a free one. Raises ServeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        told = f"cannot serve on {host}, port {port}: {error.strerror}; name another --host or --port"
        raise ServeError(told) from None
    return bound


def _name(model: Any) -> str:
    """What clients call the model: its name on the hub, or its folder's."""
    name = model_name(model) or "model"
    return Path(name).name if Path(name).is_absolute() else name
