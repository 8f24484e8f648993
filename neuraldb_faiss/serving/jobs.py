"""Changes of facts, made between batches on the model that serves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.edits.unsolved import Unsolved
from neuraldb_faiss.errors import FactError, NeuralDBError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.solver.editor import Edited, Editor
from neuraldb_faiss.store import Generation, Store

LOCK_WAIT = 60.0  # seconds that a change waits for another process that writes


class Interrupted(NeuralDBError):
    """The server stops before a change was done; the database is as it was."""


@dataclass(eq=False)
class Job:
    """A change that was accepted: facts to add, or the id of one to remove.

    Attributes:
        state: "queued", "running", "succeeded" or "failed". done: facts solved so far, of total.
        generation: the one that the change made (or found that nothing was new in).
        untaken: ids of added facts that the model still does not say. unheard: ids of facts that were left out, because
            the guard cannot find their subject in their own prompt.
    """

    tenant: Tenant
    facts: tuple[Fact, ...] = ()
    remove: str | None = None
    id: str = field(default_factory=lambda: f"job-{uuid.uuid4().hex}")
    created: float = field(default_factory=time.time)
    state: str = "queued"
    done: int = 0
    total: int = 1
    generation: int | None = None
    change: Generation | None = None
    untaken: list[str] = field(default_factory=list)
    unheard: list[str] = field(default_factory=list)
    error: str | None = None
    due: float = 0.0  # on the monotonic clock: not to be tried before

    def to_dict(self) -> dict[str, Any]:
        counts = {name: getattr(self.change, name, 0) for name in ("added", "updated", "removed")}
        return {
            "id": self.id,
            "object": "job",
            "kind": "add" if self.remove is None else "remove",
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
        """Make the change, in one generation.

        Args:
            pause: called after every fact, when the model is free and nothing of the solver is on it. Where it raises,
                the change is not made.

        Raises:
            LockedError: another process writes. NeuralDBError: the change is refused; the database is as it was.
        """

        def solved(facts: int) -> None:
            self.done = min(self.done + facts, self.total)
            pause()

        def told(now: Progress) -> None:
            self.unheard = [fact.id for fact in now.unheard]

        self.done = 0
        with closing(Store(self.tenant.path, "rw")) as store:
            editor = _editor(store.config(), model, tokenizer, solved)
            if self.remove is None:
                self.change = changes.add(store, editor, self.facts, command="serve: POST /facts", report=told, wait=0)
            else:
                doomed = list(store.catalog.facts(store.generation, ids=[self.remove]))
                if not doomed:
                    raise FactError(f"no live fact has the id {self.remove!r}")
                self.change = changes.remove(store, doomed, editor, command="serve: DELETE /facts", wait=0)
            self.generation = self.change.generation if self.change else store.generation
            mine = [fact.identity for fact in self.facts]
            self.untaken = [one.id for one in store.catalog.facts(self.generation, identities=mine, failed=True)]
        self.done = self.total
        self.facts = ()  # they are in the database now


def _editor(config: DatabaseConfig, model: Any, tokenizer: Any, solved: Callable[[int], None]) -> Any:
    """What makes the entries of a database: solves them, or leaves them to be stated where it was built so."""
    if not config.has_model:
        return Unsolved(config)
    editor = _Pausing.of(config, model, tokenizer)
    assert isinstance(editor, _Pausing)
    return replace(editor, solved=solved)


@dataclass(frozen=True)
class _Pausing(Editor):
    """An editor that solves one entry after the other, and says so in between."""

    solved: Callable[[int], None] = lambda facts: None

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        edited: list[Edited] = []
        for group in groups:
            edited += super().make_residuals([group], prefixed=prefixed)
            self.solved(len(group) if prefixed else 0)
        return edited
