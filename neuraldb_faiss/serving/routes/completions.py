"""Routes that OpenAI's clients know: completions, chat completions, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.generation import Ask, Ended, Events
from neuraldb_faiss.serving.requests import Chat, Completion, Generating
from neuraldb_faiss.serving.responses import Choice, Shape, usage
from neuraldb_faiss.serving.service import Service, bearer, database_header
from neuraldb_faiss.serving.streams import Answer
from neuraldb_faiss.serving.tenants import Tenant

router = APIRouter()

_SHORT = 16  # tokens of a text completion that names no length: OpenAI's default


@router.get("/v1/models")
async def models(request: Request) -> JSONResponse:
    service = Service.of(request)
    names = service.tenants.models(bearer(request))
    made = int(service.started)
    data = [{"id": name, "object": "model", "created": made, "owned_by": "neuraldb"} for name in names]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def model(name: str, request: Request) -> JSONResponse:
    service = Service.of(request)
    service.tenants.of_model(name, None, bearer(request))
    return JSONResponse({"id": name, "object": "model", "created": int(service.started), "owned_by": "neuraldb"})


@router.post("/v1/completions")
async def completions(body: Completion, request: Request) -> Response:
    prompts = Service.of(request).prompts
    return await _answer(body, request, lambda: [prompts.of_prompt(one) for one in body.prompt], default=_SHORT)


@router.post("/v1/chat/completions")
async def chat(body: Chat, request: Request) -> Response:
    prompts = Service.of(request).prompts
    read = lambda: [prompts.of_messages(body.messages, body.chat_template_kwargs)]  # noqa: E731
    return await _answer(body, request, read, default=None)


async def _answer(
    body: Generating, request: Request, read: Callable[[], list[list[int]]], default: int | None
) -> Response:
    """Answer each of the prompts that `read` gives `n` times."""
    service = Service.of(request)
    body.check()
    tenant = service.tenants.of_model(body.model, database_header(request), bearer(request))
    prompts = await asyncio.to_thread(read)
    asks = _asks(body, service, tenant, prompts, default)
    answer = Answer(request, asks, service.limits.timeout)
    generation = await answer.start(service.engine)
    headers = {} if generation is None else {"X-NeuralDB-Generation": str(generation)}
    shape = Shape(body, service.prompts)
    prompt = sum(map(len, prompts))
    if body.stream:
        headers["Cache-Control"] = "no-cache"
        events_sent = _stream(answer, shape, len(asks), prompt)
        return StreamingResponse(events_sent, headers=headers, media_type="text/event-stream")
    texts = await answer.whole()
    made = sum(len(one.end.tokens) for one in texts)
    choices = [Choice(one.text, one.chosen, one.end.reason) for one in texts]
    return JSONResponse(shape.whole(choices, usage(prompt, made)), headers=headers)


def _asks(
    body: Generating, service: Service, tenant: Tenant | None, prompts: list[list[int]], default: int | None
) -> list[Ask]:
    """`n` for each prompt. Raises ApiError where they do not fit into one batch."""
    count, limits = body.n or 1, service.limits
    if len(prompts) * count > limits.batch:
        told = f"{len(prompts) * count} answers are asked for: this server gives {limits.batch} at once, at most"
        raise ApiError(400, told, param="n" if count > 1 else "prompt")
    rooms = [service.prompts.room(len(ids), body.most_tokens, default) for ids in prompts]
    places = max(len(ids) + room for ids, room in zip(prompts, rooms, strict=True)) * len(prompts) * count
    if len(prompts) * count > 1 and places > limits.batch_tokens:
        told = f"{len(prompts) * count} answers, with their prompts, may have {places} tokens: this server holds"
        raise ApiError(400, f"{told} {limits.batch_tokens} at once; lower n or max_tokens", param="max_tokens")
    stops, ids = tuple(body.stop or ()), body.stop_token_ids or []
    service.prompts.check_ids(ids, "stop_token_ids")
    stop_ids = service.prompts.special_stops(stops).union(ids)
    events: Events = asyncio.Queue()
    return [
        Ask(
            prompt, room, body.sampling(number), tenant, stops, stop_ids, spaced=isinstance(body, Completion),
            likeliest=body.likeliest, index=index * count + number, events=events,
        )
        for index, (prompt, room) in enumerate(zip(prompts, rooms, strict=True))
        for number in range(count)
    ]  # fmt: skip


async def _stream(answer: Answer, shape: Shape, choices: int, prompt: int) -> AsyncIterator[str]:
    """Server-sent events. An error ends them, in place of [DONE]."""
    made = 0
    for chunk in shape.first(choices):
        yield _event(chunk)
    try:
        async for index, piece in answer.pieces():
            if isinstance(piece, Ended):
                made += len(piece.tokens)
                yield _event(shape.last(index, piece.reason, piece.chosen))
            else:
                yield _event(shape.piece(index, piece.text, piece.chosen))
        for chunk in shape.used(usage(prompt, made)):
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body())


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
