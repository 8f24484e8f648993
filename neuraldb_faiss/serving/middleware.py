"""What every request passes before the application: it is counted and logged, and refused by its header where it is
meant for another host, framed in two ways, too large, too slow, or comes while the server loads."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.lifecycle import Lifecycle
from neuraldb_faiss.serving.logs import REQUESTS, note
from neuraldb_faiss.serving.request_record import HEADER, RequestRecord
from neuraldb_faiss.serving.routes.status import OPEN
from neuraldb_faiss.serving.settings import Limits

_ENDPOINTS = {
    "/v1/chat/completions", "/v1/completions", "/v1/models", "/facts", "/history", "/rollback", "/explain", "/docs",
    "/openapi.json", *OPEN,
}  # fmt: skip
_FAMILIES = {"/facts/": "/facts/{id}", "/jobs/": "/jobs/{id}", "/v1/models/": "/v1/models/{name}"}


class Recorder:
    """Gives each request an id, which its answer bears too; counts it and logs one line about it."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, content: bool = False) -> None:
        """content: whether the log holds prompts and answers."""
        self._app = app
        self._lifecycle = lifecycle
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = RequestRecord.begin(scope, Headers(scope=scope).get(HEADER), _endpoint(scope["path"]))
        status = 499  # where nothing was sent

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = record.id
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            self._lifecycle.metrics.request(record.route, status, time.monotonic() - record.started)
            probe = record.route in OPEN and status == 200
            note(REQUESTS, "request", record.fields(status, self._content), logging.DEBUG if probe else logging.INFO)


class Door:
    """Refuses requests that are meant for another host, come from another site's page, could be read in two ways, say
    that they are too large, or do not come; and all but a few while the server loads."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, limits: Limits, hosts: Hosts) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._limits = limits
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body_due = asyncio.get_running_loop().time() + self._limits.timeout
        whole = False

        async def in_time() -> Message:
            nonlocal whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(body_due):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        error = self._refused(scope)
        if error is None and scope["path"] not in OPEN:
            error = self._lifecycle.refusal()
        if error is None:
            return await self._app(scope, in_time, send)
        RequestRecord.of_scope(scope).error = error.code
        await JSONResponse(error.body(), error.status, headers=error.headers)(scope, receive, send)

    def _refused(self, scope: Scope) -> ApiError | None:
        """What is wrong with a request, by its header alone."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._hosts.knows(host):
            return _unknown_host(host)
        if origin is not None and not self._hosts.trusts(origin, host):
            message = (
                f"requests from pages of other sites ({origin[:100]}) are refused: if that page may ask, start the"
                " server with --cors and this origin"
            )
            return ApiError(403, message, code="foreign_origin")
        coded = "transfer-encoding" in headers
        if coded and ("content-length" in headers or scope["http_version"] == "1.0"):
            # What a proxy before us took for the end of this request may not be what we take for it: one of both lied.
            return ApiError(
                400, "a request has either a Content-Length or (in HTTP/1.1) Transfer-Encoding: chunked, not both",
                headers={"Connection": "close"},
            )  # fmt: skip
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._limits.body:
            return too_large(self._limits)
        return None


def too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body has more than {limits.body} bytes: send less", code="body_too_large")


def _unknown_host(host: str) -> ApiError:
    message = (
        f"this server does not know itself by the name {host[:100]!r} (header Host): if it is meant, start it with"
        " --allowed-host and that name, without the port"
    )
    return ApiError(421, message, code="unknown_host")


def _endpoint(path: str) -> str:
    """What a path counts as: a known few, whatever clients ask for."""
    if path in _ENDPOINTS:
        return path
    return next((name for start, name in _FAMILIES.items() if path.startswith(start)), "other")
