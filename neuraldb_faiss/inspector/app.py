"""The page's own routes, beside those of `neuraldb serve`: facts, jobs, completions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field

from neuraldb_faiss.answers.report_file import FactResult, TestReport, find_report
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import FingerprintError, NeuralDBError, StoreError
from neuraldb_faiss.inspector.rendering import histogram_part, live_page, look_part
from neuraldb_faiss.inspector.views import Look, Looker
from neuraldb_faiss.serving.errors import ApiError, too_slow, unreadable
from neuraldb_faiss.serving.jobs import Asker, RollingBack
from neuraldb_faiss.serving.model_service import ModelService
from neuraldb_faiss.serving.request_record import RequestRecord
from neuraldb_faiss.serving.routes.common import accepted, check
from neuraldb_faiss.serving.service import bearer, database_header
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.store import Store, StoredFact
from neuraldb_faiss.store.fact_pages import fact_page

T = TypeVar("T")

PAGE = 50  # facts
_ONE_LINE = 300  # characters of an answer that the list shows


class Ask(BaseModel):
    """A prompt to look at. max_tokens: of the answer. chat: it is a user's message. delivery: how facts reach it,
    None for the database's own."""

    prompt: str
    max_tokens: int = Field(20, ge=1)
    chat: bool = False
    delivery: Literal["residual", "text", "both", "auto"] | None = None


class Back(BaseModel):
    generation: int = Field(ge=1, lt=2**63)


@dataclass(eq=False)
class Shown:
    """One database on the page.

    Attributes:
        path: its folder. given: report of a test that was named for it; None: one that lies beside it is looked for.
        looker: used by the thread that owns the model, and made when it is first needed.
    """

    path: Path
    given: TestReport | None = None
    looker: Looker | None = None
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = self.path.resolve().name

    def report(self) -> TestReport | None:
        """The last test of its facts that is known."""
        return self.given or find_report(self.path, list(dict.fromkeys((self.path.resolve().parent, Path.cwd()))))

    def open(self, model: Any, tokenizer: Any) -> Looker:
        """A looker at what lies in the folder now."""
        self.close()
        self.looker = Looker(NeuralDB.open(self.path), model, tokenizer)
        return self.looker

    def close(self) -> None:
        if self.looker is not None:
            self.looker.close()
            self.looker = None


class Inspected:
    """What the routes share: the databases that are shown, by the names that requests call them."""

    def __init__(self, databases: Mapping[str, Path], reports: Mapping[str, TestReport] | None = None) -> None:
        """databases: as the server has them. reports: of tests, for some of them."""
        given = reports or {}
        self.shown = {name: Shown(path, given.get(name)) for name, path in databases.items()}

    def of(self, request: Request) -> tuple[Tenant, Shown]:
        """The database that a request names, or the first one, for who brings its token. Raises ApiError."""
        name = database_header(request) or next(iter(self.shown))
        tenant = ModelService.of(request).tenants.of_header(name, bearer(request))
        return tenant, self.shown[tenant.name]

    async def ask(self, request: Request, what: Callable[[Looker], T]) -> T:
        """`what` of the looker at the newest generation. Raises ApiError."""
        service, (tenant, shown) = ModelService.of(request), self.of(request)

        def run(model: Any, tokenizer: Any) -> T:
            try:
                looker = shown.looker or shown.open(model, tokenizer)
                looker.refresh()
            except (StoreError, FingerprintError):  # perhaps another database took the folder's place
                looker = shown.open(model, tokenizer)
            return what(looker)

        try:
            async with asyncio.timeout(service.limits.timeout):
                return await asyncio.wrap_future(service.engine.call(run))
        except TimeoutError:
            raise too_slow(service.limits.timeout) from None
        except ApiError:
            raise
        except (StoreError, FingerprintError) as error:
            raise unreadable(tenant.name, error) from error
        except NeuralDBError as error:
            raise ApiError(400, str(error)) from error

    def close(self) -> None:
        """When the server has stopped."""
        for shown in self.shown.values():
            shown.close()


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
        service, (tenant, shown) = ModelService.of(request), inspected.of(request)
        check(tenant)
        report = shown.report()
        with NeuralDB.open(shown.path) as db:
            return JSONResponse(
                {
                    "database": tenant.name,
                    "databases": [{"name": name, "label": one.label} for name, one in inspected.shown.items()],
                    "name": shown.label,
                    "model": service.tenants.model_name,
                    "chat": service.prompts.has_template,
                    "generation": db.generation,
                    "facts": len(db),
                    "layer": db.layer if db.config.has_model else None,
                    "gamma": db.gamma,
                    "guard": db.guard,
                    "delivery": db.config.delivery,
                    "residuals": db.config.has_residuals,
                    "test": None if report is None else _about_test(report),
                }
            )

    @router.get("/inspect/facts")
    def facts(
        request: Request,
        page: Annotated[int, Query(ge=1, lt=2**31)] = 1,
        order: Literal["oldest", "newest", "subject", "weakest"] = "oldest",
        contains: str | None = None,
        light: Literal["green", "yellow", "red"] | None = None,
        holding: str | None = None,
    ) -> JSONResponse:
        """A page of the facts, each with its light in the last test; `holding` names the fact whose page is wanted."""
        tenant, shown = inspected.of(request)
        check(tenant)
        results = report.facts if (report := shown.report()) is not None else {}
        where: Any = {"contains": contains or None}
        if light is not None:
            where["ids"] = [name for name, one in results.items() if one.light == light]
        try:
            with closing(Store(shown.path)) as store:
                now = store.generation
                found = fact_page(
                    store.catalog, now, order=order, number=page, size=PAGE, holding=holding, **where
                )  # fmt: skip
        except NeuralDBError as error:
            raise unreadable(tenant.name, error) from error
        data = [{**fact.to_dict(), "test": _tested(fact, results.get(fact.id))} for fact in found.facts]
        told = {"page": found.number, "pages": found.pages, "total": found.total, "size": PAGE}
        return JSONResponse({"generation": now, **told, "data": data})

    @router.post("/inspect/look")
    async def look(body: Ask, request: Request) -> JSONResponse:
        inspected.of(request)
        service = ModelService.of(request)
        ids = await asyncio.to_thread(service.prompts.of_text, body.prompt)
        service.prompts.room(len(ids), body.max_tokens, None)
        found = await inspected.ask(
            request,
            lambda looker: looker.look(
                body.prompt, max_new_tokens=body.max_tokens, chat=body.chat, delivery=body.delivery
            ),
        )
        html = await asyncio.to_thread(look_part, found)
        return JSONResponse({"generation": found.generation, "summary": _summary(found), "html": html})

    @router.get("/inspect/cosines")
    async def cosines(request: Request) -> JSONResponse:
        inspected.of(request)
        html, generation = await inspected.ask(
            request,
            lambda looker: (histogram_part(looker.cosines(), looker.gamma, looker.guard), looker.generation),
        )
        return JSONResponse({"generation": generation, "html": html})

    @router.get("/inspect/history")
    def history(request: Request) -> JSONResponse:
        """Newest first; kept: whether one can be rolled back to."""
        tenant, shown = inspected.of(request)
        check(tenant)
        with NeuralDB.open(shown.path) as db:
            now, first, found = db.generation, db.config.history_start, db.history()
        data = [{**one.to_dict(), "kept": one.generation >= first} for one in reversed(found)]
        return JSONResponse({"generation": now, "data": data})

    @router.post("/inspect/rollback", status_code=202)
    def back(body: Back, request: Request) -> JSONResponse:
        service, (tenant, _) = ModelService.of(request), inspected.of(request)
        who = service.tenants.check_change(tenant, bearer(request))
        check(tenant)
        return accepted(service, RollingBack(tenant, Asker(who, RequestRecord.of(request).id), to=body.generation))

    return router


def _summary(look: Look) -> str:
    """For who cannot see the colours."""
    told = []
    if look.states and look.stated:
        count = len(look.stated)
        told.append(f"{count} {'fact' if count == 1 else 'facts'} stated ({_names(look.stated)}).")
    if look.fired:
        told.append(f"{len(look.fired)} fired ({_names(fact for one in look.fired for fact in one.facts)}).")
    if not told:
        told = ["No fact stated and none fired: the answer is the model's own." if look.states
                else "No fact fired: the answer is the model's own."]  # fmt: skip
    return " ".join(told)


def _names(facts: Iterable[StoredFact]) -> str:
    return ", ".join(dict.fromkeys(fact.target for fact in facts))


def _about_test(report: TestReport) -> dict[str, Any]:
    found = [one.light for one in report.facts.values()]
    counts = {light: found.count(light) for light in ("green", "yellow", "red")}
    return {"file": report.path.name, "time": report.time, "delivery": report.delivery, **counts}


def _tested(fact: StoredFact, result: FactResult | None) -> dict[str, Any] | None:
    """What the last test says of a fact, unless it says something else by now."""
    if result is None or not result.is_of(fact):
        return None
    problems = [
        {"asked": one.asked[:_ONE_LINE], "said": one.said.strip()[:_ONE_LINE], "problem": one.problem}
        for one in result.problems
    ]
    return {"light": result.light, "good": result.good, "asks": result.asks, "problems": problems}
