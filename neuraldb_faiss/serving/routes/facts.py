"""Routes about facts: list, add, remove, follow a change, explain an answer."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from neuraldb_faiss.errors import FactError, NeuralDBError
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.serving.delivery import Room, asked_delivery, headers_of
from neuraldb_faiss.serving.errors import ApiError, unreadable
from neuraldb_faiss.serving.generation import Ask
from neuraldb_faiss.serving.jobs import Job
from neuraldb_faiss.serving.requests import Explain, Facts
from neuraldb_faiss.serving.sampling import Sampling
from neuraldb_faiss.serving.service import Service, bearer, database_header
from neuraldb_faiss.serving.streams import Answer
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.serving.validation_errors import wrong
from neuraldb_faiss.store import StoredFact

router = APIRouter()


@router.get("/facts")
def facts(
    request: Request,
    subject: str | None = None,
    contains: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=-1, lt=2**63)] = -1,
) -> JSONResponse:
    """One page of the live facts; `next`, where it is not null, is the `after` of the next page."""
    for name in request.query_params:
        if name not in ("subject", "contains", "limit", "after"):
            raise wrong(name[:100], "is no parameter of this page: leave it out")
    tenant = _tenant(request)
    generation, found = _read(tenant, subject=subject, contains=contains, limit=limit, after=after)
    more = found[-1].row if len(found) == limit else None
    data = [fact.to_dict() for fact in found]
    return JSONResponse(
        {"object": "list", "database": tenant.name, "generation": generation, "data": data, "next": more}
    )


@router.post("/facts", status_code=202)
async def add(body: Facts, request: Request) -> JSONResponse:
    service = Service.of(request)
    tenant = _to_change(request)
    if len(body.facts) > service.limits.facts:
        raise ApiError(400, f"{len(body.facts)} facts: send {service.limits.facts} at once, at most", param="facts")
    await asyncio.to_thread(check, tenant)
    folded = await asyncio.to_thread(_folded, service, body)
    return _accepted(service, Job(tenant, facts=tuple(folded), total=len(folded)))


@router.delete("/facts/{name:path}", status_code=202)
def remove(name: str, request: Request) -> JSONResponse:
    service = Service.of(request)
    tenant = _to_change(request)
    if not _read(tenant, ids=[name])[1]:
        raise ApiError(404, f"no live fact has the id {name!r}: GET /facts lists them", param="id", code="no_fact")
    return _accepted(service, Job(tenant, remove=name))


@router.get("/jobs/{name}")
async def job(name: str, request: Request) -> JSONResponse:
    service = Service.of(request)
    found = service.engine.job(name)
    if found is None:
        told = f"there is no job {name!r}: the last thousand are kept, as long as the server runs"
        raise ApiError(404, told, code="no_job")
    service.tenants.of_header(found.tenant.name, bearer(request))
    return JSONResponse(found.to_dict())


@router.post("/explain")
async def explain(body: Explain, request: Request) -> JSONResponse:
    """Which facts fire where in a prompt, and in its greedy continuation of max_tokens; and which are stated in it."""
    service = Service.of(request)
    tenant = _tenant(request)
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
    (made,) = await answer.whole()
    whole = [*ids, *made.end.tokens]
    words = [service.prompts.word(token) for token in whole]
    fired = [{**asdict(one), "token": words[one.position]} for one in made.end.fired or []]
    return JSONResponse(
        {
            "database": tenant.name,
            "generation": generation,
            "prompt_tokens": len(ids),
            "tokens": words,
            "text": made.text,
            "fired": fired,
            "delivery": prepared.delivery,
            "stated": [_stated(fact) for fact in prepared.facts],
        },
        headers=headers_of([prepared]),
    )


def _stated(fact: StoredFact) -> dict[str, str]:
    told = {"id": fact.id, "subject": fact.subject, "prompt": fact.prompt, "target": fact.target}
    return {**told, "statement": fact.statement}


def _tenant(request: Request) -> Tenant:
    return Service.of(request).tenants.of_header(database_header(request), bearer(request))


def _to_change(request: Request) -> Tenant:
    tenant = _tenant(request)
    Service.of(request).tenants.check_change(tenant, bearer(request))
    return tenant


def check(tenant: Tenant) -> None:
    """Raises ApiError (503) where a change would not go into a database that can answer."""
    try:
        tenant.check()
    except NeuralDBError as error:
        raise unreadable(tenant.name, error) from error


def _read(tenant: Tenant, **where: Any) -> tuple[int, list[StoredFact]]:
    """The newest generation, and its facts that fit."""
    try:
        return tenant.read(**where)
    except NeuralDBError as error:
        raise unreadable(tenant.name, error) from error


def _folded(service: Service, given: Facts) -> list[Fact]:
    """The facts of a request. Raises ApiError naming the one that is wrong."""
    found = []
    for number, record in enumerate(given.facts):
        try:
            fact = Fact.from_dict(record)
            service.prompts.of_text(f"{fact.text} {fact.target}")
        except (FactError, ApiError) as error:
            raise ApiError(400, f"facts[{number}]: {error}", param=f"facts[{number}]", code="bad_fact") from error
        found.append(fact)
    try:
        return fold(found, given.on_conflict).facts
    except FactError as error:
        raise ApiError(400, str(error), param="facts", code="bad_fact") from error


def _accepted(service: Service, job: Job) -> JSONResponse:
    service.engine.change(job)
    return JSONResponse(job.to_dict(), 202, headers={"Location": f"/jobs/{job.id}"})
