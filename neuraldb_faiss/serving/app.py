"""The application: its routes and error bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.middleware import Door, too_large
from neuraldb_faiss.serving.routes import completions, facts
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.validation_errors import invalid


def make_app(service: Service, routers: Sequence[APIRouter] = (), hosts: Hosts | None = None) -> ASGIApp:
    """The server's application, with further routes; its worker runs from start-up to shutdown.

    hosts: by what names it may be asked; None: by those of loopback only.
    """

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
    for router in (completions.router, facts.router, *routers):
        app.include_router(router)
    app.add_api_route("/health", _health)
    app.add_api_route("/metrics", _metrics)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _own_error)
    return Door(app, service, hosts or Hosts())


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
        return await _api_error(request, too_large(Service.of(request).limits))
    told = {404: "there is no such page", 405: "this page does not take this method"}
    message = f"{told.get(error.status_code, error.detail)} ({request.method} {request.url.path})"
    headers = dict(error.headers) if error.headers else None
    return await _api_error(request, ApiError(error.status_code, message, headers=headers))


async def _own_error(request: Request, error: Exception) -> JSONResponse:
    return await _api_error(request, ApiError(500, "the server failed; its log says more"))
