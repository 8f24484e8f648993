"""Connections that hold their descriptors only so long, and no more of them than there are descriptors for."""

from __future__ import annotations

import asyncio
import json
import os
import resource
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.settings import Limits

ACCEPTED_AT_ONCE = 8  # connections that the event loop takes before it looks at any; beyond the limit there may be four
# times as many until those that are too many are closed
_MOST = 1000
_RESERVED = 256  # descriptors, for databases and the rest of the process
_LEAST = 64
_UNFINISHED = (h11.IDLE, h11.SEND_BODY)


def connection_limit() -> int:
    """How many clients may be connected at once, by the process's limit of open files and what is open now.

    Raises ServeError: hardly any file can be opened any more.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return _MOST
    left = limit - len(os.listdir("/dev/fd"))
    if left < _LEAST:
        raise ServeError(
            f"this process may open {limit} files, of which {max(left, 0)} are left: too few to serve with. Raise the"
            " limit before the start (ulimit -n 1024)"
        )
    return min(_MOST, left - min(_RESERVED, left // 2))


class Connection(H11Protocol):
    """One client's connection. A deadline always runs: for the next request's header, or for the answer to be read.

    Where there are too many connections, the one that has kept the server waiting longest is closed: so clients that
    connect and send nothing, half a header or half a body do not keep others out.
    """

    def __init__(self, *arguments: Any, limits: Limits, most: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._most = most
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._timed: Any = None  # the request that the deadline is of

    # ---- what uvicorn and asyncio call

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._allow(self._limits.header)
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not self._timed:  # a header is whole
            self._timed = self.cycle
            # The body may take the time-out, then the answer; whoever does not read it must not keep us longer.
            self._allow(2 * self._limits.timeout + self._limits.header)

    def on_response_complete(self) -> None:
        unread = self.transport.get_write_buffer_size() > 0
        self._allow(self._limits.timeout if unread else self._limits.idle + self._limits.header)
        super().on_response_complete()

    def shutdown(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # a request that is not whole is not waited for
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "the request is no valid HTTP/1.1"))

    # ---- bounds

    def _allow(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        header = self.conn.their_state is h11.IDLE and not self.transport.get_write_buffer_size()
        if header and not self.transport.is_closing():
            told = f"the request's header did not come whole within {self._limits.header:g} seconds"
            self._refuse(ApiError(408, told))
        else:
            self.transport.abort()

    def _make_room(self) -> None:
        others = [one for one in self.connections if one is not self and isinstance(one, Connection)]
        unfinished = [one for one in others if one.conn.their_state in _UNFINISHED]
        unread = [one for one in others if one.transport.get_write_buffer_size()]
        waited_for = unfinished or unread
        if waited_for:
            oldest = min(waited_for, key=lambda one: one._since)
            self.connections.discard(oldest)  # its end is noticed later
            oldest.transport.abort()
        else:
            error = ApiError(503, "too many clients are connected: try again later", code="too_many_connections")
            self._refuse(error, (b"retry-after", b"1"))

    def _refuse(self, error: ApiError, *headers: tuple[bytes, bytes]) -> None:
        """Tell the client, unless it is being answered, and close the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # the application's answer, if there is one yet, goes nowhere
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
            reason = HTTPStatus(error.status).phrase.encode()
            events = (
                h11.Response(status_code=error.status, headers=[*head, (b"connection", b"close")], reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self._allow(self._limits.header)  # to be read
        self.transport.close()
