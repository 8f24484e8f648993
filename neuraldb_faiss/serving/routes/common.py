"""What routes about databases share: which database is meant, who may, and what is read and changed there."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import unreadable
from neuraldb_faiss.serving.jobs import Asker, Job
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.service import Service, bearer, database_header
from neuraldb_faiss.serving.validation_errors import wrong
from neuraldb_faiss.store import StoredFact


def to_read(request: Request) -> Database:
    """The database that a request means. Raises ApiError where there is none, or its token is missing."""
    found: Database = Service.of(request).tenants.of_header(database_header(request), bearer(request))
    RequestRecord.of(request).database = found.name
    return found


def to_change(request: Request) -> tuple[Database, Asker]:
    """The database that a request may change, and who asks. Raises ApiError as `to_read`."""
    database = to_read(request)
    who = Service.of(request).tenants.check_change(database, bearer(request))
    return database, Asker(who, RequestRecord.of(request).id)


def no_parameters_but(request: Request, *known: str) -> None:
    """Raises ApiError for a parameter of the query that has none of these names."""
    for name in request.query_params:
        if name not in known:
            raise wrong(name[:100], "is no parameter of this page: leave it out")


def check(database: Database) -> None:
    """Raises ApiError (503) where a change would not go into a database that can answer."""
    try:
        database.check()
    except NeuralDBError as error:
        raise unreadable(database.name, error) from error


def read(request: Request, database: Database, **where: Any) -> tuple[int, list[StoredFact]]:
    """The newest generation, and its facts that fit. Raises ApiError as `check`."""
    try:
        generation, found = database.read(**where)
    except NeuralDBError as error:
        raise unreadable(database.name, error) from error
    RequestRecord.of(request).generation = generation
    return generation, found


def accepted(service: Service, job: Job) -> JSONResponse:
    """The answer to a change that is queued now. Raises ApiError where too many wait."""
    service.engine.change(job)
    return JSONResponse(job.to_dict(), 202, headers={"Location": f"/jobs/{job.id}"})
