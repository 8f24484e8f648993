"""Route that explains an answer: what fired, and what was stated."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from neuraldb_faiss.serving.delivery import Room, headers_of
from neuraldb_faiss.serving.delivery_headers import asked_delivery
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.generation import Ask
from neuraldb_faiss.serving.model_service import ModelService
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.requests import Explain
from neuraldb_faiss.serving.routes.common import to_read
from neuraldb_faiss.serving.sampling import Sampling
from neuraldb_faiss.serving.schemas import Explanation
from neuraldb_faiss.serving.streams import Answer
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.store import StoredFact

router = APIRouter(tags=["facts"])


@router.post("/explain", response_model=Explanation)
async def explain(body: Explain, request: Request) -> JSONResponse:
    """Which facts fire where in a prompt, and in its greedy continuation of max_tokens; which are stated in it; and
    which it names, with their cosines and why they do not fire."""
    service = ModelService.of(request)
    tenant = to_read(request)
    assert isinstance(tenant, Tenant)
    asked = asked_delivery(request, body.neuraldb_delivery)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either a prompt or messages", param="prompt")
    given = (body.prompt or "") if body.messages is None else body.messages
    prepared = await asyncio.to_thread(service.deliveries.prepare, tenant, given, asked, Room(body.max_tokens, None))
    ids = prepared.ids
    ask = Ask(
        ids, prepared.room, Sampling(), tenant, spaced=body.messages is None, explain=True, fires=prepared.fires
    )  # fmt: skip
    answer = Answer(request, [ask], service.limits.timeout)
    generation = await answer.start(service.engine)
    (made,) = await answer.whole(to_the_end=True)
    whole = [*ids, *made.end.tokens]
    record = RequestRecord.of(request)
    record.generation = generation
    record.usage(len(ids), len(made.end.tokens))
    words = [service.prompts.word(token) for token in whole]
    fired = [{**asdict(one), "token": words[one.position]} for one in made.end.fired or []]
    named = await asyncio.wrap_future(service.engine.call(lambda *_: _named(tenant, whole, prepared.fires)))
    gamma, guard = tenant.gate or (None, None)
    return JSONResponse(
        {
            "database": tenant.name,
            "generation": generation,
            "gamma": gamma,
            "guard": guard,
            "prompt_tokens": len(ids),
            "tokens": words,
            "text": made.text,
            "fired": fired,
            "named": [{**one, "token": words[one["position"]]} for one in named],
            "delivery": prepared.delivery,
            "stated": [{**_name(fact), "statement": fact.statement} for fact in prepared.facts],
        },
        headers=headers_of([prepared]),
    )


def _named(tenant: Tenant, ids: Sequence[int], fires: bool) -> list[dict[str, Any]]:
    """The entries whose subjects the tokens name, and why those that do not fire do not. In the engine's thread.

    fires: whether the request lets facts fire at all.
    """
    return [
        {
            "position": one.place,
            "entry": one.entry,
            "facts": [_name(fact) for fact in tenant.facts_of(one.entry)],
            "score": one.score,
            "needed": one.needed,
            "fired": fires and one.reason is None,
            "reason": one.reason if fires else "delivery",
            "why": (one.why or None) if fires else "the request's facts are stated, and so none fires",
        }
        for one in tenant.named(ids)
    ]


def _name(fact: StoredFact) -> dict[str, str]:
    return {"id": fact.id, "subject": fact.subject, "prompt": fact.prompt, "target": fact.target}
