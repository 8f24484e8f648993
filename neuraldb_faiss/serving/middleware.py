"""What every request passes before the application: whom it is for, how it is framed, how large and how slow it is."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import Limits

_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/explain")
_FAMILIES = {"/facts/": "/facts/{id}", "/jobs/": "/jobs/{id}", "/v1/models/": "/v1/models/{name}"}


class Door:
    """Counts requests and refuses those that are meant for another host, come from another site's page, could be read
    in two ways, say that they are too large, or do not come."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Hosts) -> None:
        self._app = app
        self._service = service
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.monotonic()
        status = 499  # where nothing was sent
        body_due = asyncio.get_running_loop().time() + self._service.limits.timeout
        whole = False

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

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

        try:
            if (error := self._refused(scope)) is not None:
                await JSONResponse(error.body(), error.status, headers=error.headers)(scope, receive, counted)
            else:
                await self._app(scope, in_time, counted)
        finally:
            self._service.metrics.request(_endpoint(scope["path"]), status, time.monotonic() - started)

    def _refused(self, scope: Scope) -> ApiError | None:
        """What is wrong with a request, by its header alone."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if host is not None and not self._hosts.knows(host):
            return _unknown_host(host)
        if origin is not None and not self._hosts.trusts(origin, host):
            message = (
                f"requests from pages of other sites ({origin[:100]}) are refused: if that page may ask, start the"
                " server with --allowed-host and the name that the page is from"
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
        if length.isdigit() and int(length) > self._service.limits.body:
            return too_large(self._service.limits)
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
    if path in _ENDPOINTS or path == "/facts":
        return path
    return next((name for start, name in _FAMILIES.items() if path.startswith(start)), "other")
