"""Routes that OpenAI's clients know: completions, chat completions, models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from neuraldb_faiss.serving.contents import Prompt, Turn
from neuraldb_faiss.serving.delivery import Prepared, Room, headers_of
from neuraldb_faiss.serving.delivery_headers import GENERATION, asked_delivery
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.generation import Ask, Ended, Events
from neuraldb_faiss.serving.model_service import ModelService
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.requests import Chat, Completion, Generating
from neuraldb_faiss.serving.responses import Choice, Shape, usage
from neuraldb_faiss.serving.schemas import STREAMED, ChatAnswer, Model, Models, TextAnswer
from neuraldb_faiss.serving.service import bearer, database_header
from neuraldb_faiss.serving.settings import UNEDITED
from neuraldb_faiss.serving.streams import Answer
from neuraldb_faiss.serving.tenants import Tenant

router = APIRouter(tags=["completions"])

_SHORT = 16  # tokens of a text completion that names no length: OpenAI's default


@router.get("/v1/models", response_model=Models)
async def models(request: Request) -> JSONResponse:
    service = ModelService.of(request)
    names = service.tenants.models(bearer(request))
    made = int(service.started)
    data = [{"id": name, "object": "model", "created": made, "owned_by": "neuraldb"} for name in names]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name:path}", response_model=Model)
async def model(name: str, request: Request) -> JSONResponse:
    service = ModelService.of(request)
    service.tenants.of_model(name, None, bearer(request))
    return JSONResponse({"id": name, "object": "model", "created": int(service.started), "owned_by": "neuraldb"})


@router.post("/v1/completions", response_model=TextAnswer, responses=STREAMED)
async def completions(body: Completion, request: Request) -> Response:
    return await _answer(body, request, body.prompt, default=_SHORT)


@router.post("/v1/chat/completions", response_model=ChatAnswer, responses=STREAMED)
async def chat(body: Chat, request: Request) -> Response:
    return await _answer(body, request, [body.messages], default=None, variables=body.chat_template_kwargs)


async def _answer(
    body: Generating, request: Request, prompts: Sequence[Prompt | Sequence[Turn]], default: int | None,
    variables: Mapping[str, Any] | None = None,
) -> Response:  # fmt: skip
    """Answer each of the prompts `n` times."""
    service = ModelService.of(request)
    body.check()
    asked = asked_delivery(request, body.neuraldb_delivery)
    tenant = service.tenants.of_model(body.model, database_header(request), bearer(request))
    record = RequestRecord.of(request)
    record.database = UNEDITED if tenant is None else tenant.name
    record.prompt = list(prompts)
    room = Room(body.most_tokens, default, len(prompts) * (body.n or 1))

    def read() -> list[Prepared]:
        return [service.deliveries.prepare(tenant, prompt, asked, room, variables) for prompt in prompts]

    prepared = await asyncio.to_thread(read)
    asks = _asks(body, service, tenant, prepared)
    answer = Answer(request, asks, service.limits.timeout)
    generation = await answer.start(service.engine)
    record.generation = generation
    headers = {} if generation is None else {GENERATION: str(generation)}
    headers |= headers_of(prepared)
    shape = Shape(body, service.prompts)
    prompt = sum(len(one.ids) for one in prepared)
    record.usage(prompt, 0)
    if body.stream:
        headers["Cache-Control"] = "no-cache"
        events_sent = _stream(answer, shape, len(asks), record)
        return StreamingResponse(events_sent, headers=headers, media_type="text/event-stream")
    texts = await answer.whole()
    made = sum(len(one.end.tokens) for one in texts)
    record.usage(prompt, made)
    record.answer = [one.text for one in texts]
    choices = [Choice(one.text, one.chosen, one.end.reason) for one in texts]
    return JSONResponse(shape.whole(choices, usage(prompt, made)), headers=headers)


def _asks(body: Generating, service: ModelService, tenant: Tenant | None, prompts: Sequence[Prepared]) -> list[Ask]:
    """`n` for each prompt. Raises ApiError where they do not fit into one batch."""
    count, limits = body.n or 1, service.limits
    if len(prompts) * count > limits.batch:
        told = f"{len(prompts) * count} answers are asked for: this server gives {limits.batch} at once, at most"
        raise ApiError(400, told, param="n" if count > 1 else "prompt")
    places = max(len(one.ids) + one.room for one in prompts) * len(prompts) * count
    if len(prompts) * count > 1 and places > limits.batch_tokens:
        told = f"{len(prompts) * count} answers, with their prompts, may have {places} tokens: this server holds"
        raise ApiError(400, f"{told} {limits.batch_tokens} at once; lower n or max_tokens", param="max_tokens")
    stops, ids = tuple(body.stop or ()), body.stop_token_ids or []
    service.prompts.check_ids(ids, "stop_token_ids")
    stop_ids = service.prompts.special_stops(stops).union(ids)
    events: Events = asyncio.Queue()
    return [
        Ask(
            one.ids, one.room, body.sampling(number), tenant, stops, stop_ids, spaced=isinstance(body, Completion),
            likeliest=body.likeliest, index=index * count + number, events=events, fires=one.fires,
        )
        for index, one in enumerate(prompts)
        for number in range(count)
    ]  # fmt: skip


async def _stream(answer: Answer, shape: Shape, choices: int, record: RequestRecord) -> AsyncIterator[str]:
    """Server-sent events. An error ends them, in place of [DONE]."""
    prompt, made = record.prompt_tokens or 0, 0
    record.answer = [""] * choices
    for chunk in shape.first(choices):
        yield _event(chunk)
    try:
        async for index, piece in answer.pieces():
            if isinstance(piece, Ended):
                made += len(piece.tokens)
                record.usage(prompt, made)
                yield _event(shape.last(index, piece.reason, piece.chosen))
            else:
                record.answer[index] += piece.text
                yield _event(shape.piece(index, piece.text, piece.chosen))
        for chunk in shape.used(usage(prompt, made)):
            yield _event(chunk)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        record.error = error.code or "server_error"
        yield _event(error.body())


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
