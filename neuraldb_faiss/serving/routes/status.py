"""Routes about the server itself: whether it lives, whether it is ready, its metrics."""

from __future__ import annotations

from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from neuraldb_faiss.serving import openapi
from neuraldb_faiss.serving.errors import SOON
from neuraldb_faiss.serving.lifecycle import Lifecycle
from neuraldb_faiss.serving.schemas import Status

router = APIRouter(tags=["server"])
OPEN = frozenset({"/health", "/ready", "/metrics"})  # answered while the server loads, too


@router.get("/health", response_model=Status, responses={503: {"model": Status}})
async def health(request: Request) -> JSONResponse:
    """Whether the process lives: 503 only where it must be started anew."""
    state = _lifecycle(request).state
    return JSONResponse({"status": "ok" if state == "ready" else state}, 503 if state == "failed" else 200)


@router.get("/ready", response_model=Status, responses={503: {"model": Status}})
async def ready(request: Request) -> JSONResponse:
    """Whether requests are answered: 503 while the model is loaded and while the server stops."""
    state = _lifecycle(request).state
    if state == "ready":
        return JSONResponse({"status": state})
    return JSONResponse({"status": state}, 503, headers=SOON)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters for Prometheus, in its text form."""
    return Response(_lifecycle(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/openapi.json", include_in_schema=False)
def description(request: Request) -> JSONResponse:
    """The description of the interface, for programs."""
    return JSONResponse(openapi.describe(request.app))


@router.get("/docs", include_in_schema=False)
def docs(request: Request) -> HTMLResponse:
    """The description of the interface, for people."""
    return HTMLResponse(openapi.page(openapi.describe(request.app)), headers=openapi.POLICY)


def _lifecycle(request: Request) -> Lifecycle:
    return cast(Lifecycle, request.app.state.lifecycle)
