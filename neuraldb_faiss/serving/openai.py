"""Routes that OpenAI's clients know: completions, chat completions, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from neuraldb_faiss.serving.asks import Ask, Ended
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.sampling import Sampling
from neuraldb_faiss.serving.schemas import Chat, Completion, Generating, Shape, usage
from neuraldb_faiss.serving.service import Service, bearer, database_header
from neuraldb_faiss.serving.waiting import Answer

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
    read = partial(Service.of(request).prompts.of_text, body.prompt[0])
    return await _answer(body, request, read, body.max_tokens, default=_SHORT)


@router.post("/v1/chat/completions")
async def chat(body: Chat, request: Request) -> Response:
    read = partial(Service.of(request).prompts.of_messages, body.messages)
    return await _answer(body, request, read, body.max_completion_tokens or body.max_tokens, default=None)


async def _answer(
    body: Generating, request: Request, read: Callable[[], list[int]], max_tokens: int | None, default: int | None
) -> Response:
    service = Service.of(request)
    body.check()
    tenant = service.tenants.of_model(body.model, database_header(request), bearer(request))
    ids = await asyncio.to_thread(read)
    sampling = Sampling(
        1.0 if body.temperature is None else body.temperature, 1.0 if body.top_p is None else body.top_p, body.seed
    )
    ask = Ask(
        ids, service.prompts.room(len(ids), max_tokens, default), sampling, tenant, tuple(body.stop or ()),
        spaced=isinstance(body, Completion),
    )  # fmt: skip
    answer = Answer(request, ask, service.limits.timeout)
    generation = await answer.start(service.engine)
    headers = {} if generation is None else {"X-NeuralDB-Generation": str(generation)}
    shape = Shape(body)
    if body.stream:
        headers["Cache-Control"] = "no-cache"
        return StreamingResponse(_stream(answer, shape, len(ids)), headers=headers, media_type="text/event-stream")
    text, end = await answer.whole()
    return JSONResponse(shape.whole(text, end.reason, usage(len(ids), len(end.tokens))), headers=headers)


async def _stream(answer: Answer, shape: Shape, prompt: int) -> AsyncIterator[str]:
    """Server-sent events. An error ends them, in place of [DONE]."""
    for chunk in shape.first():
        yield _event(chunk)
    try:
        async for piece in answer.pieces():
            if isinstance(piece, Ended):
                for chunk in shape.last(piece.reason, usage(prompt, len(piece.tokens))):
                    yield _event(chunk)
                yield "data: [DONE]\n\n"
            else:
                yield _event(shape.piece(piece))
    except ApiError as error:
        yield _event(error.body())


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
