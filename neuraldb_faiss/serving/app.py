"""The application: its routes, what stands before them, and error bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.lifecycle import Lifecycle
from neuraldb_faiss.serving.middleware import Door, Recorder, too_large
from neuraldb_faiss.serving.request_record import HEADER, RequestRecord
from neuraldb_faiss.serving.routes import facts, history, status
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.serving.settings import ServerSettings
from neuraldb_faiss.serving.validation_errors import invalid

# What a page of another site may read of an answer, beside the headers that any may.
_EXPOSED = (HEADER, "X-NeuralDB-Generation", "X-NeuralDB-Delivery", "X-NeuralDB-Grounded", "Location", "Retry-After")


def make_app(lifecycle: Lifecycle, settings: ServerSettings, routers: Sequence[APIRouter] = ()) -> ASGIApp:
    """The server's application, with further routes; those of its backend come with `Lifecycle.serve`.

    At its shutdown the worker ends.
    """
    limits, hosts = settings.limits, settings.hosts or Hosts()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        lifecycle.stop()
        service = lifecycle.service
        if service is not None:
            service.engine.close(limits.grace)
            await asyncio.to_thread(service.engine.join)
            await service.close()

    app = FastAPI(
        title="neuraldb", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, max_body_size=limits.body
    )
    app.state.lifecycle = lifecycle
    lifecycle.include = app.include_router
    for router in (status.router, facts.router, history.router, *routers):
        app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _own_error)
    inner: ASGIApp = Door(app, lifecycle, limits, hosts)
    if hosts.origins:
        inner = CORSMiddleware(
            inner, sorted(hosts.origins), allow_methods=["GET", "POST", "PATCH", "DELETE"], allow_headers=["*"],
            expose_headers=_EXPOSED,
        )  # fmt: skip
    return Recorder(inner, lifecycle, settings.log_content)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    RequestRecord.of(request).error = error.code or error.body()["error"]["type"]
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
