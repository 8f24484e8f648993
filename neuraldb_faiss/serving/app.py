"""The application: routes, error bodies, and the door before them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from neuraldb_faiss.serving import facts, openai
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.invalid import invalid
from neuraldb_faiss.serving.service import Service

logger = logging.getLogger(__name__)

_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/explain")
_FAMILIES = {"/facts/": "/facts/{id}", "/jobs/": "/jobs/{id}", "/v1/models/": "/v1/models/{name}"}


def make_app(service: Service, routers: Sequence[APIRouter] = ()) -> ASGIApp:
    """The server's application, with further routes; its worker runs from start-up to shutdown."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        service.engine.close(service.limits.grace)
        await asyncio.to_thread(service.engine.join)
        service.tenants.close()

    app = FastAPI(
        title="neuraldb", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None,
        max_body_size=service.limits.body,
    )  # fmt: skip
    app.state.service = service
    for router in (openai.router, facts.router, *routers):
        app.include_router(router)
    app.add_api_route("/health", _health)
    app.add_api_route("/metrics", _metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _own_error)
    return Door(app, service)


async def _health(request: Request) -> JSONResponse:
    alive = Service.of(request).engine.alive
    return JSONResponse({"status": "ok" if alive else "stopping"}, 200 if alive else 503)


async def _metrics(request: Request) -> Response:
    return Response(Service.of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def _bad_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = invalid(error.errors()[0], request.headers.get("content-type", ""))
    return await _api_error(request, found)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 413:
        return await _api_error(request, _too_large(Service.of(request)))
    told = {404: "there is no such page", 405: "this page does not take this method"}
    message = f"{told.get(error.status_code, error.detail)} ({request.method} {request.url.path})"
    headers = dict(error.headers) if error.headers else None
    return await _api_error(request, ApiError(error.status_code, message, headers=headers))


async def _own_error(request: Request, error: Exception) -> JSONResponse:
    return await _api_error(request, ApiError(500, "the server failed; its log says more"))


def _too_large(service: Service) -> ApiError:
    return ApiError(413, f"the body has more than {service.limits.body} bytes: send less", code="body_too_large")


class Door:
    """Counts requests, refuses bodies that say that they are too large, and those that do not come."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = time.monotonic()
        status = 499  # where nothing was sent
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
                async with asyncio.timeout(self._service.limits.timeout):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time") from None
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        length = dict(scope["headers"]).get(b"content-length", b"")
        try:
            if length.isdigit() and int(length) > self._service.limits.body:
                error = _too_large(self._service)
                await JSONResponse(error.body(), error.status)(scope, receive, counted)
            else:
                await self._app(scope, in_time, counted)
        finally:
            self._service.metrics.request(_endpoint(scope["path"]), status, time.monotonic() - started)


def _endpoint(path: str) -> str:
    """What a path counts as: a known few, whatever clients ask for."""
    if path in _ENDPOINTS or path == "/facts":
        return path
    return next((name for start, name in _FAMILIES.items() if path.startswith(start)), "other")
