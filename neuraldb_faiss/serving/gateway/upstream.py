"""The server behind a gateway, which speaks OpenAI's API: what is sent there, and what its failures become."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.errors import ApiError, busy, too_slow
from neuraldb_faiss.serving.settings import Limits

logger = logging.getLogger(__name__)

_CONNECT = 10.0  # seconds
_LISTED = 30.0  # seconds for which the list of models is believed
_LONGEST_ERROR = 1 << 20  # bytes of an error's body that are read
_PASSED = ("content-type", "content-encoding")


@dataclass(frozen=True)
class Target:
    """Where the upstream server is. url: up to and with /v1. key: of its own, sent as a bearer token."""

    url: str
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Target:
        """Of a base URL as OpenAI's clients take it; without a path, /v1 is meant.

        Raises:
            ServeError: it is no http or https URL, or brings a user, a query or a fragment.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ServeError(f"--upstream {url}: give the server's address, as in http://127.0.0.1:8080/v1")
        return cls(url.rstrip("/") + ("" if parts.path.strip("/") else "/v1"), key)


class Upstream:
    """Sends requests to one server, at most so many at once; used by one event loop."""

    def __init__(self, target: Target, limits: Limits, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """transport: instead of the network, for tests."""
        self.url = target.url
        self._limits = limits
        # The answers' bytes are passed on as they are, so none may be compressed but for whom the client asked.
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {target.key}"} if target.key else {})}
        self._client = httpx2.AsyncClient(
            headers=headers, transport=transport, follow_redirects=False,
            verify=target.url.startswith("https:"),  # else certificates would be read for nothing
            timeout=httpx2.Timeout(limits.timeout, connect=min(_CONNECT, limits.timeout)),
            limits=httpx2.Limits(max_connections=limits.queue, max_keepalive_connections=20),
        )  # fmt: skip
        self._running = 0
        self._models: list[dict[str, Any]] = []
        self._listed = float("-inf")

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """What the server lists: objects with an id. Raises ApiError."""
        if time.monotonic() - self._listed > _LISTED:
            answer = await self.send("GET", "/models")
            body = await answer.read()
            try:
                found = json.loads(body)["data"]
                self._models = [one for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]
            except (ValueError, KeyError, TypeError):
                raise _bad("the upstream server's list of models cannot be read") from None
            self._listed = time.monotonic()
        return self._models

    async def send(self, method: str, path: str, body: bytes | None = None, request_id: str = "") -> Answer:
        """Send a request; its answer once its header has come, which must be read or closed.

        Raises:
            ApiError: the server cannot be reached, is too slow, or answers an error.
        """
        if self._running >= self._limits.queue:
            raise busy(f"{self._running} requests run already")
        deadline = asyncio.get_running_loop().time() + self._limits.timeout
        headers = {"x-request-id": request_id} if request_id else {}
        if body is not None:
            headers["content-type"] = "application/json"
        self._running += 1
        response: httpx2.Response | None = None
        try:
            request = self._client.build_request(method, self.url + path, content=body, headers=headers)
            async with asyncio.timeout_at(deadline):
                response = await self._client.send(request, stream=True)
                if not response.is_success:
                    raise await _refused(response)
        except BaseException as error:
            self._running -= 1
            if response is not None:
                await response.aclose()
            if (told := _told(error, self._limits)) is not None:
                raise told from error
            raise
        return Answer(self, response, deadline, self._limits)

    def done(self) -> None:
        """An answer was read or closed."""
        self._running -= 1


class Answer:
    """An answer of the upstream server whose header has come. headers: those that are passed on."""

    def __init__(self, upstream: Upstream, response: httpx2.Response, deadline: float, limits: Limits) -> None:
        self._upstream, self._response = upstream, response
        self._deadline, self._limits = deadline, limits
        self._open = True
        self.headers = {name: response.headers[name] for name in _PASSED if name in response.headers}

    @property
    def is_stream(self) -> bool:
        """Whether it comes as server-sent events."""
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def read(self) -> bytes:
        """All of it. Raises ApiError."""
        return b"".join([piece async for piece in self.pieces()])

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its bytes as they come. Raises ApiError."""
        coming = self._response.aiter_raw()
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    piece = await anext(coming, None)
                if piece is None:
                    return
                yield piece
        except Exception as error:
            if (told := _told(error, self._limits)) is not None:
                raise told from error
            raise
        finally:
            await self.close()

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._upstream.done()
            await self._response.aclose()


def _told(error: BaseException, limits: Limits) -> ApiError | None:
    """What a client is told of an exception that comes of the upstream server; None for others."""
    if isinstance(error, TimeoutError | httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout):
        return too_slow(limits.timeout)
    if isinstance(error, httpx2.TransportError):
        logger.warning("the upstream server failed: %s: %s", type(error).__name__, error)
        cut = isinstance(error, httpx2.RemoteProtocolError | httpx2.ReadError)
        return _bad("the upstream server broke off" if cut else "the upstream server cannot be reached")
    return None


async def _refused(response: httpx2.Response) -> ApiError:
    """What a client is told of an answer that is an error: what the upstream server says, in OpenAI's form."""
    pieces, size = [], 0
    async for piece in response.aiter_raw():
        pieces.append(piece)
        size += len(piece)
        if size > _LONGEST_ERROR:
            break
    status = response.status_code
    if status in (401, 403, 407):  # of the gateway's key: no fault of the client's
        logger.error("the upstream server refuses the gateway's key (%d)", status)
        return _bad("the upstream server refuses this gateway's key: its --upstream-key-file must be set right")
    if status < 400:
        return _bad(f"the upstream server redirects elsewhere ({status}): --upstream must name its own address")
    told = _message(b"".join(pieces))
    message = str(told.get("message") or f"the upstream server answered {status}")
    retry = response.headers.get("retry-after")
    param, code = (value if isinstance(value := told.get(name), str) else None for name in ("param", "code"))
    return ApiError(
        status, message, param=param, code=code or "upstream_error", headers={"Retry-After": retry} if retry else None
    )


def _message(body: bytes) -> Mapping[str, Any]:
    """The error that a body tells, in whichever of the usual forms."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            inner = found[name]
            return inner if isinstance(inner, dict) else {"message": inner if isinstance(inner, str) else None}
    return {}


def _bad(message: str) -> ApiError:
    return ApiError(502, message, code="upstream_error")
