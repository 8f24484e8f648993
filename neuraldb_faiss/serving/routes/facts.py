"""Routes about facts: list, add, change, remove, and follow a change."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.fact_requests import Change, Facts
from neuraldb_faiss.serving.jobs import Adding, Removing, Updating
from neuraldb_faiss.serving.routes.common import accepted, check, no_parameters_but, read, to_change, to_read
from neuraldb_faiss.serving.schemas import FactPage, JobBody
from neuraldb_faiss.serving.service import Service, bearer
from neuraldb_faiss.store import StoredFact

router = APIRouter(tags=["facts"])


@router.get("/facts", response_model=FactPage)
def facts(
    request: Request,
    subject: str | None = None,
    contains: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[int, Query(ge=-1, lt=2**63)] = -1,
) -> JSONResponse:
    """One page of the live facts; `next`, where it is not null, is the `after` of the next page."""
    no_parameters_but(request, "subject", "contains", "limit", "after")
    database = to_read(request)
    generation, found = read(request, database, subject=subject, contains=contains, limit=limit, after=after)
    more = found[-1].row if len(found) == limit else None
    data = [fact.to_dict() for fact in found]
    return JSONResponse(
        {"object": "list", "database": database.name, "generation": generation, "data": data, "next": more}
    )


@router.post("/facts", status_code=202, response_model=JobBody)
async def add(body: Facts, request: Request) -> JSONResponse:
    """Add facts, or update those with the same subject and prompt: one, a list, or an object with both fields."""
    service = Service.of(request)
    database, asker = to_change(request)
    if len(body.facts) > service.limits.facts:
        raise ApiError(400, f"{len(body.facts)} facts: send {service.limits.facts} at once, at most", param="facts")
    await asyncio.to_thread(check, database)
    await asyncio.to_thread(service.check_add, database)
    folded = tuple(await asyncio.to_thread(_folded, service, body))
    return accepted(service, Adding(database, asker, folded, total=len(folded)))


@router.patch("/facts/{name:path}", status_code=202, response_model=JobBody)
def change(name: str, body: Change, request: Request) -> JSONResponse:
    """Change a live fact: the fields that are given take the place of its own, null drops one.

    A statement of its own is dropped with the target it was written for, unless a new one is given. Its id stays.
    """
    service = Service.of(request)
    database, asker = to_change(request)
    old = _live(request, database, name)
    service.check_add(database)
    try:
        fact = body.applied_to(old)
        service.check_fact(f"{fact.text} {fact.target}")
    except (FactError, ApiError) as error:
        raise ApiError(400, str(error), code="bad_fact") from error
    return accepted(service, Updating(database, asker, (fact,), old=name))


@router.delete("/facts/{name:path}", status_code=202, response_model=JobBody)
def remove(name: str, request: Request) -> JSONResponse:
    """Remove a live fact."""
    database, asker = to_change(request)
    _live(request, database, name)
    return accepted(Service.of(request), Removing(database, asker, remove=name))


@router.get("/jobs/{name}", response_model=JobBody)
async def job(name: str, request: Request) -> JSONResponse:
    """How far a change is."""
    service = Service.of(request)
    found = service.engine.job(name)
    if found is None:
        told = f"there is no job {name!r}: the last thousand are kept, as long as the server runs"
        raise ApiError(404, told, code="no_job")
    service.tenants.of_header(found.tenant.name, bearer(request))
    return JSONResponse(found.to_dict())


def _live(request: Request, database: Database, name: str) -> StoredFact:
    """The live fact with this id. Raises ApiError where there is none."""
    found = read(request, database, ids=[name])[1]
    if not found:
        raise ApiError(404, f"no live fact has the id {name!r}: GET /facts lists them", param="id", code="no_fact")
    return found[0]


def _folded(service: Service, given: Facts) -> list[Fact]:
    """The facts of a request. Raises ApiError naming the one that is wrong."""
    found = []
    for number, record in enumerate(given.facts):
        try:
            fact = Fact.from_dict(record)
            service.check_fact(f"{fact.text} {fact.target}")
        except (FactError, ApiError) as error:
            raise ApiError(400, f"facts[{number}]: {error}", param=f"facts[{number}]", code="bad_fact") from error
        found.append(fact)
    try:
        return fold(found, given.on_conflict).facts
    except FactError as error:
        raise ApiError(400, str(error), param="facts", code="bad_fact") from error
