"""Changes of databases that were asked for over HTTP, and the line that each leaves in the log. No torch."""

from __future__ import annotations

import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.edits.unsolved import Unsolved
from neuraldb_faiss.errors import FactError, LockedError, ModelError, NeuralDBError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.serving.logs import AUDIT, note
from neuraldb_faiss.store import Generation, Store, StoredFact, rollback

LOCK_WAIT = 60.0  # seconds that a change waits for another process that writes


class Interrupted(NeuralDBError):
    """The server stops before a change was done; the database is as it was."""


@dataclass(frozen=True)
class Asker:
    """Who asked for a change: the name of the token, and the id of the request."""

    who: str = ""
    request: str = ""


@dataclass(eq=False)
class Job(ABC):
    """A change that was accepted.

    Attributes:
        tenant: the `Database`; an engine's is a `Tenant`.
        state: "queued", "running", "succeeded" or "failed". done: facts solved so far, of total.
        facts: those that it adds, until they are in the database.
        generation: the one that the change made (or found that nothing was new in). changed: ids of its facts.
        untaken: ids of added facts that the model still does not say. unheard: ids of facts that were left out, because
            the guard cannot find their subject in their own prompt.
    """

    kind: ClassVar[str]

    tenant: Any
    asker: Asker = Asker()
    facts: tuple[Fact, ...] = ()
    id: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex}")
    created: float = field(default_factory=time.time)
    state: str = "queued"
    done: int = 0
    total: int = 1
    generation: int | None = None
    change: Generation | None = None
    changed: list[str] = field(default_factory=list)
    untaken: list[str] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)
    error: str | None = None
    due: float = 0.0  # on the monotonic clock: not to be tried before

    def to_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self.change, name, 0) for name in ("added", "updated", "removed")}
        return {
            "id": self.id,
            "object": "job",
            "kind": self.kind,
            "database": self.tenant.name,
            "created": int(self.created),
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "generation": self.generation,
            **counts,
            "untaken": self.untaken,
            "unheard": self.unheard,
            "error": self.error,
        }

    def run(self, model: Any, tokenizer: Any, pause: Callable[[], None]) -> None:
        """Make the change, in one generation, and log it.

        Args:
            model: None where there is none: then only databases without residuals take facts.
            pause: called after every fact, when the model is free and nothing of the solver is on it. Where it raises,
                the change is not made.

        Raises:
            LockedError: another process writes. NeuralDBError: the change is refused; the database is as it was.
        """

        def solved(facts: int) -> None:
            self.done = min(self.done + facts, self.total)
            pause()

        self.done = 0
        try:
            with closing(Store(self.tenant.path, "rw")) as store:
                editor = _editor(store.config(), model, tokenizer, solved)
                self.change = self.make(store, editor)
                self.generation = self.change.generation if self.change else store.generation
                self.finish(store)
        except LockedError:
            raise
        except Exception as error:
            self._log("change failed", error=type(error).__name__)
            raise
        self.done = self.total
        self.facts = ()
        self._log("change", **self.told())

    @abstractmethod
    def make(self, store: Store, editor: Any) -> Generation | None:
        """The change itself; None where nothing was new. editor: None where no model can solve anything."""

    def finish(self, store: Store) -> None:  # noqa: B027  (most changes leave nothing to note)
        """Note what became of it, once it is made."""

    def told(self) -> dict[str, Any]:
        """What the log says beside who, where and which generation."""
        return {"facts": self.changed}

    def _log(self, message: str, **more: Any) -> None:
        told = {"kind": self.kind, "database": self.tenant.name, "who": self.asker.who, "generation": self.generation}
        ids = {"request": self.asker.request, "job": self.id}
        fields = {name: value for name, value in (told | more | ids).items() if value not in (None, "")}
        note(AUDIT, message, fields, logging.INFO)


@dataclass(eq=False)
class Adding(Job):
    """Facts to add, or to put in the place of those with the same subject and prompt."""

    kind: ClassVar[str] = "add"

    def make(self, store: Store, editor: Any) -> Generation | None:
        _need(editor)
        return changes.add(store, editor, self.facts, command="serve: POST /facts", report=self.report, wait=0)

    def report(self, now: Progress) -> None:
        self.unheard = [fact.id for fact in now.unheard]

    def finish(self, store: Store) -> None:
        mine = [fact.identity for fact in self.facts]
        found = list(store.catalog.facts(self.generation or 0, identities=mine))
        self.changed = [fact.id for fact in found] if self.change else []
        self.untaken = [one.id for one in store.catalog.facts(self.generation or 0, identities=mine, failed=True)]


@dataclass(eq=False)
class Updating(Adding):
    """A fact that takes the place of the live one with the id `old`."""

    kind: ClassVar[str] = "update"

    old: str = ""

    def make(self, store: Store, editor: Any) -> Generation | None:
        _need(editor)
        (fact,) = self.facts
        old = _live(store, self.old)
        return changes.update(store, editor, old, fact, command="serve: PATCH /facts", report=self.report, wait=0)


@dataclass(eq=False)
class Removing(Job):
    """The fact with the id `remove` to end."""

    kind: ClassVar[str] = "remove"

    remove: str = ""

    def make(self, store: Store, editor: Any) -> Generation | None:
        doomed = _live(store, self.remove)
        self.changed = [doomed.id]
        return changes.remove(store, [doomed], editor, command="serve: DELETE /facts", wait=0)


@dataclass(eq=False)
class RollingBack(Job):
    """The way back to the generation `to`, which makes a new one."""

    kind: ClassVar[str] = "rollback"

    to: int = 0

    def make(self, store: Store, editor: Any) -> Generation | None:
        self.tenant.check()  # another database may have taken the folder's place
        return rollback(store, self.to, wait=0)

    def told(self) -> dict[str, Any]:
        return {"to": self.to}


def _live(store: Store, name: str) -> StoredFact:
    found = list(store.catalog.facts(store.generation, ids=[name]))
    if not found:
        raise FactError(f"no live fact has the id {name!r}")
    return found[0]


def _need(editor: Any) -> None:
    if editor is None:
        raise ModelError("the facts of this database are solved by its model, and there is none here")


def _editor(config: DatabaseConfig, model: Any, tokenizer: Any, solved: Callable[[int], None]) -> Any:
    """What makes the entries of a database: solves them, or leaves them to be stated where it was built so; None where
    it needs a model and there is none."""
    if not config.has_model:
        return Unsolved(config)
    if model is None:
        return None
    from neuraldb_faiss.serving.solving import pausing_editor

    return pausing_editor(config, model, tokenizer, solved)
