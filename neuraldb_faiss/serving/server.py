"""Start a server, and stop it cleanly."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import uvicorn
from fastapi import APIRouter

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.app import make_app
from neuraldb_faiss.serving.connections import ACCEPTED_AT_ONCE, Connection, connection_limit
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.lifecycle import Lifecycle
from neuraldb_faiss.serving.logs import sparing_logs
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.service import Backend, Load
from neuraldb_faiss.serving.settings import ServerSettings

_WAITING = 1024  # connections that the kernel holds until they are taken
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Server(uvicorn.Server):
    """Serves databases on a socket that is bound already; answers 503 while its backend loads, and while it stops."""

    def __init__(
        self, load: Load, bound: socket.socket, settings: ServerSettings, *,
        ready: Callable[[Sequence[str]], None], routers: Sequence[APIRouter] = (),
    ) -> None:  # fmt: skip
        """
        Args:
            load: gives what answers; called once, in another thread, when the socket is open.
            bound: the socket to listen on (see `bind`).
            ready: called with the names of all models once requests are answered.
            routers: further routes.

        Raises:
            ServeError: too few files can be opened.
        """
        limits = settings.limits
        address = bound.getsockname()[0]
        settings = replace(settings, hosts=settings.hosts or Hosts.of(address, address))
        self._load, self._bound, self._ready, self._grace = load, bound, ready, limits.grace
        self._lifecycle = Lifecycle(Metrics())
        self._failure: BaseException | None = None
        self._cover_loggers: Callable[[], None] = lambda: None
        connection: Any = partial(Connection, limits=limits, most=connection_limit())
        super().__init__(
            uvicorn.Config(
                make_app(self._lifecycle, settings, routers), loop="asyncio", http=connection,
                ws="none", lifespan="on", log_config=None, access_log=False, proxy_headers=False, server_header=False,
                backlog=ACCEPTED_AT_ONCE, timeout_keep_alive=limits.idle,
            )
        )  # fmt: skip

    def serve_until_told(self) -> None:
        """Answer requests until SIGTERM, SIGINT or `should_exit`; then finish what runs, and return.

        Raises:
            NeuralDBError: it could not be loaded: as `load` says.
        """
        # uvicorn sends itself again, to the handlers of before, what it was stopped by: that is us, and we are done.
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        try:
            with sparing_logs() as self._cover_loggers:
                self.run(sockets=[self._bound])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failure is not None:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # The event loop takes a few connections at once (`backlog`); those that the kernel holds may be more.
            self._bound.listen(_WAITING)
            threading.Thread(target=self._loading, args=(asyncio.get_running_loop(),), daemon=True).start()

    def _loading(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread of its own, which a stop does not wait for."""
        try:
            backend = self._load(self._lifecycle.metrics)
        except BaseException as error:
            found: Callable[[], None] = partial(self._failed, error)
        else:
            found = partial(self._loaded, backend)
        with suppress(RuntimeError):  # the loop is closed: the server was stopped meanwhile
            loop.call_soon_threadsafe(found)

    def _loaded(self, backend: Backend) -> None:
        if self.should_exit:
            backend.service.tenants.close()
            return
        self._cover_loggers()
        self._lifecycle.serve(backend)
        self._ready(backend.service.tenants.names)

    def _failed(self, error: BaseException) -> None:
        self._failure, self.should_exit = error, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, and say so to whoever still comes, until what runs is done; then close."""
        end = time.monotonic() + self._grace
        self._lifecycle.stop()
        service = self._lifecycle.service
        if service is not None:
            service.engine.close(self._grace)
            finished = asyncio.ensure_future(asyncio.to_thread(service.engine.join))
            while not finished.done() and not self.force_exit and time.monotonic() < end:
                await asyncio.wait({finished}, timeout=0.1)
        self.config.timeout_graceful_shutdown = max(1, round(end - time.monotonic()))
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
