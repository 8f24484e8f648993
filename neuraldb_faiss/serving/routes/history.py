"""Routes about generations: list them, and go back to one."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import ApiError, unreadable
from neuraldb_faiss.serving.fact_requests import Back
from neuraldb_faiss.serving.jobs import RollingBack
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.routes.common import accepted, no_parameters_but, to_change, to_read
from neuraldb_faiss.serving.schemas import GenerationPage, JobBody
from neuraldb_faiss.serving.service import Service
from neuraldb_faiss.store import Generation

router = APIRouter(tags=["facts"])


@router.get("/history", response_model=GenerationPage)
def history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
) -> JSONResponse:
    """One page of the generations, the newest first; `next`, where it is not null, is the `before` of the next page.

    `kept`: whether it can be rolled back to.
    """
    no_parameters_but(request, "limit", "before")
    database = to_read(request)
    now, first, found = _generations(database)
    RequestRecord.of(request).generation = now
    older = [one for one in reversed(found) if before is None or one.generation < before]
    data = [{**one.to_dict(), "kept": one.generation >= first} for one in older[:limit]]
    more = data[-1]["generation"] if len(older) > limit else None
    return JSONResponse({"object": "list", "database": database.name, "generation": now, "data": data, "next": more})


@router.post("/rollback", status_code=202, response_model=JobBody)
def rollback(body: Back, request: Request) -> JSONResponse:
    """Make a new generation whose facts are those of an older one."""
    database, asker = to_change(request)
    now, first, _ = _generations(database)
    if body.generation == now:
        raise ApiError(400, f"{database.name} is at generation {now} already", param="generation", code="no_generation")
    if not first <= body.generation < now:
        told = f"there is no way back to generation {body.generation}: GET /history lists those that are kept"
        raise ApiError(404, told, param="generation", code="no_generation")
    return accepted(Service.of(request), RollingBack(database, asker, to=body.generation))


def _generations(database: Database) -> tuple[int, int, list[Generation]]:
    """The newest generation, the first that is kept, and all, the oldest first."""
    try:
        with database.reading() as store:
            return store.generation, store.config().history_start, store.catalog.generations()
    except NeuralDBError as error:
        raise unreadable(database.name, error) from error
