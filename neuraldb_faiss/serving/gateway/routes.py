"""Routes of a gateway: completions that the upstream server makes, its models, and what would be stated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from neuraldb_faiss.serving.delivery_headers import FIELD, GENERATION, asked_delivery, delivery_headers, read_delivery
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.gateway.grounding import Stated, state
from neuraldb_faiss.serving.gateway.service import GatewayService
from neuraldb_faiss.serving.gateway.upstream import Answer
from neuraldb_faiss.serving.gateway.usage import UsageReader
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.routes.common import to_read
from neuraldb_faiss.serving.service import bearer, database_header
from neuraldb_faiss.serving.settings import UNEDITED

router = APIRouter(tags=["completions"])


class Completion(BaseModel):
    """What the gateway reads; all other fields are the upstream server's affair."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    prompt: str | list[Any] | None = None
    neuraldb_delivery: str | None = None


class Chat(BaseModel):
    """What the gateway reads; all other fields are the upstream server's affair."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    messages: list[dict[str, Any]] = Field(min_length=1)
    neuraldb_delivery: str | None = None


class Explain(BaseModel):
    """A prompt, or messages."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    """The upstream server's models, alone and with each database."""
    service = GatewayService.of(request)
    data = [
        {**one, "id": name}
        for one in await service.upstream.models()
        for name in service.tenants.behind(one["id"], bearer(request))
    ]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> JSONResponse:
    """One of them."""
    service = GatewayService.of(request)
    alone, _ = service.tenants.split(name, None, bearer(request))
    for one in await service.upstream.models():
        if one["id"] == alone:
            return JSONResponse({**one, "id": name})
    raise _no_model(name)


@router.post("/v1/completions")
async def completions(body: Completion, request: Request) -> Response:
    """A completion by the upstream server, of the prompt with the facts that it names."""
    return await _answer(body, request, "/completions")


@router.post("/v1/chat/completions")
async def chat(body: Chat, request: Request) -> Response:
    """An answer by the upstream server, to the messages with the facts that they name."""
    return await _answer(body, request, "/chat/completions")


@router.post("/explain", tags=["facts"])
async def explain(body: Explain, request: Request) -> JSONResponse:
    """Which facts would be stated for a prompt, and how it would go to the upstream server."""
    database = to_read(request)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either a prompt or messages", param="prompt")
    stated = await asyncio.to_thread(state, database, body.model_dump(exclude_none=True))
    RequestRecord.of(request).generation = stated.generation
    facts = [
        {"id": fact.id, "subject": fact.subject, "prompt": fact.prompt, "target": fact.target,
         "statement": fact.statement}
        for fact in stated.facts
    ]  # fmt: skip
    told = {"database": database.name, "generation": stated.generation, "delivery": "text", "stated": facts}
    return JSONResponse({**told, **stated.body}, headers=delivery_headers(["text"], stated.facts))


async def _answer(body: Completion | Chat, request: Request, path: str) -> Response:
    service, record = GatewayService.of(request), RequestRecord.of(request)
    asked = asked_delivery(request, read_delivery(body.neuraldb_delivery))
    if asked not in (None, "auto", "text"):
        raise ApiError(
            400, f"{FIELD} is {asked!r}: before another server facts can only be stated ('text')", param=FIELD
        )
    name, database = service.tenants.split(body.model, database_header(request), bearer(request))
    record.database = UNEDITED if database is None else database.name
    if name == body.model and "+" in name:
        await _check_name(service, name)
    given: dict[str, Any] = await request.json()
    given = {key: value for key, value in given.items() if key != FIELD} | {"model": name}
    record.prompt = given.get("messages", given.get("prompt"))
    stated = Stated(given) if database is None else await asyncio.to_thread(state, database, given)
    headers: dict[str, str] = {}
    if database is not None:
        record.generation = stated.generation
        headers = {GENERATION: str(stated.generation), **delivery_headers(["text"], stated.facts)}
        service.metrics.grounded(database, len(stated.facts))
        service.metrics.show(database)
    try:
        sent = json.dumps(stated.body, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # half of a surrogate pair, NaN
        raise ApiError(400, "the body holds what is no JSON text or number") from None
    answer = await service.upstream.send("POST", path, sent, record.id)
    usage = UsageReader(record, answer.is_stream, lambda *tokens: service.metrics.answered(database, *tokens))
    if answer.is_stream:
        headers |= {**answer.headers, "Cache-Control": "no-cache"}
        return StreamingResponse(_stream(answer, usage, record), headers=headers)
    whole = await answer.read()
    usage.read(whole)
    usage.end()
    return Response(whole, headers={**headers, **answer.headers})


async def _stream(answer: Answer, usage: UsageReader, record: RequestRecord) -> AsyncIterator[bytes]:
    """The upstream server's bytes as they come. An error of it ends them, as an event of its own."""
    try:
        async for piece in answer.pieces():
            usage.read(piece)
            yield piece
    except ApiError as error:
        record.error = error.code
        yield f"\n\ndata: {json.dumps(error.body())}\n\n".encode()
    finally:
        usage.end()
        await answer.close()


async def _check_name(service: GatewayService, name: str) -> None:
    """Raises ApiError for a model with an unknown database behind its name: servers that know one model only would
    answer it, from no database."""
    try:
        known = {one["id"] for one in await service.upstream.models()}
    except ApiError:  # not every server lists them
        return
    if name not in known and name.rpartition("+")[0] in known:
        raise _no_model(name)


def _no_model(name: str) -> ApiError:
    message = f"there is no model {name!r}: GET /v1/models lists them"
    return ApiError(404, message, param="model", code="model_not_found")
