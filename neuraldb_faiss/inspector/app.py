"""The page's own routes, beside those of `neuraldb serve`: facts, jobs, completions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import FingerprintError, NeuralDBError, StoreError
from neuraldb_faiss.inspector.rendering import histogram_part, live_page, look_part
from neuraldb_faiss.inspector.views import Look, Looker
from neuraldb_faiss.serving.errors import ApiError, too_slow, unreadable
from neuraldb_faiss.serving.jobs import Job
from neuraldb_faiss.serving.routes.facts import check
from neuraldb_faiss.serving.service import Service, bearer
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.store import Store, rollback

T = TypeVar("T")

NAME = "db"  # the one database's, for the server


class Ask(BaseModel):
    """A prompt to look at. max_tokens: of the answer. chat: it is a user's message."""

    prompt: str
    max_tokens: int = Field(20, ge=1)
    chat: bool = False


class Back(BaseModel):
    generation: int = Field(ge=1, lt=2**63)


@dataclass(eq=False)
class Rollback(Job):
    """A change back to the generation `to`."""

    to: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "kind": "rollback"}

    def run(self, model: Any, tokenizer: Any, pause: Callable[[], None]) -> None:
        """Raises LockedError: another process writes. StoreError: there is no way back to there. FingerprintError: a
        database of another model took the folder's place."""
        self.tenant.check()
        with closing(Store(self.tenant.path, "rw")) as store:
            self.change = rollback(store, self.to, wait=0)
        self.generation, self.done = self.change.generation, self.total


class Inspected:
    """What the routes share: a looker, used by the thread that owns the model and made when it is first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looker: Looker | None = None

    async def ask(self, service: Service, what: Callable[[Looker], T]) -> T:
        """`what` of the looker at the newest generation. Raises ApiError."""

        def run(model: Any, tokenizer: Any) -> T:
            try:
                looker = self._looker or self._open(model, tokenizer)
                looker.refresh()
            except (StoreError, FingerprintError):  # perhaps another database took the folder's place
                looker = self._open(model, tokenizer)
            return what(looker)

        try:
            async with asyncio.timeout(service.limits.timeout):
                return await asyncio.wrap_future(service.engine.call(run))
        except TimeoutError:
            raise too_slow(service.limits.timeout) from None
        except ApiError:
            raise
        except (StoreError, FingerprintError) as error:
            raise unreadable(NAME, error) from error
        except NeuralDBError as error:
            raise ApiError(400, str(error)) from error

    def _open(self, model: Any, tokenizer: Any) -> Looker:
        self.close()
        self._looker = Looker(NeuralDB.open(self.path), model, tokenizer)
        return self._looker

    def close(self) -> None:
        """When the server has stopped."""
        if self._looker is not None:
            self._looker.close()
            self._looker = None


def routes(inspected: Inspected) -> APIRouter:
    """The page at "/", and what it asks for; all but the page itself needs the database's token."""
    router = APIRouter()
    page, allowed = live_page()
    headers = {
        "Content-Security-Policy": allowed, "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY", "Cache-Control": "no-store",
    }  # fmt: skip

    @router.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @router.get("/inspect/about")
    def about(request: Request) -> JSONResponse:
        check(_tenant(request))
        service = Service.of(request)
        with NeuralDB.open(inspected.path) as db:
            return JSONResponse(
                {
                    "name": inspected.path.resolve().name,
                    "model": service.tenants.model_name,
                    "chat": service.prompts.has_template,
                    "generation": db.generation,
                    "facts": len(db),
                    "layer": db.layer,
                    "gamma": db.gamma,
                    "guard": db.guard,
                }
            )

    @router.post("/inspect/look")
    async def look(body: Ask, request: Request) -> JSONResponse:
        _tenant(request)
        service = Service.of(request)
        ids = await asyncio.to_thread(service.prompts.of_text, body.prompt)
        service.prompts.room(len(ids), body.max_tokens, None)
        found = await inspected.ask(
            service, lambda looker: looker.look(body.prompt, max_new_tokens=body.max_tokens, chat=body.chat)
        )
        html = await asyncio.to_thread(look_part, found)
        return JSONResponse({"generation": found.generation, "summary": _summary(found), "html": html})

    @router.get("/inspect/cosines")
    async def cosines(request: Request) -> JSONResponse:
        _tenant(request)
        html, generation = await inspected.ask(
            Service.of(request),
            lambda looker: (histogram_part(looker.cosines(), looker.gamma, looker.guard), looker.generation),
        )
        return JSONResponse({"generation": generation, "html": html})

    @router.get("/inspect/history")
    def history(request: Request) -> JSONResponse:
        """Newest first; kept: whether one can be rolled back to."""
        check(_tenant(request))
        with NeuralDB.open(inspected.path) as db:
            now, first, found = db.generation, db.config.history_start, db.history()
        data = [{**one.to_dict(), "kept": one.generation >= first} for one in reversed(found)]
        return JSONResponse({"generation": now, "data": data})

    @router.post("/inspect/rollback", status_code=202)
    def back(body: Back, request: Request) -> JSONResponse:
        service, tenant = Service.of(request), _tenant(request)
        service.tenants.check_change(tenant, bearer(request))
        check(tenant)
        job = Rollback(tenant, to=body.generation)
        service.engine.change(job)
        return JSONResponse(job.to_dict(), 202, headers={"Location": f"/jobs/{job.id}"})

    return router


def _tenant(request: Request) -> Tenant:
    """The database, for who brings its token. Raises ApiError."""
    return Service.of(request).tenants.of_header(NAME, bearer(request))


def _summary(look: Look) -> str:
    """For who cannot see the colours."""
    if not look.fired:
        return "No fact fired: the answer is the model's own."
    names = ", ".join(dict.fromkeys(fact.target for one in look.fired for fact in one.facts))
    return f"{len(look.fired)} fired ({names})."
