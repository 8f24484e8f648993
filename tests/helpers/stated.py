"""Facts as a snapshot has them, without a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.store import StoredFact


class Stated:
    """A snapshot of these facts, an entry each; those of `ended` have names still, as in a real one."""

    search_folder: Path | None = None
    epoch = generation = 1
    lineage = "stated"

    def __init__(self, facts: Sequence[Fact], *, ended: Sequence[int] = (), floors: dict[str, float] | None = None):
        known = {"key_id": "k", "time": "t", "residual": "none"}
        self._facts = [StoredFact.of(fact, entry=at, row=at, **known) for at, fact in enumerate(facts)]
        self._ended = set(ended)
        self.floors = floors or {}

    def stamp_of(self, generation: int) -> str | None:
        return "stamp"

    def names(self, entry_id: int) -> tuple[str, ...]:
        fact = self._facts[entry_id]
        return names_in_texts(fact.subject, fact.prompt, fact.metadata.get("aliases", ()))

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        yield from ((at, at, name) for at in range(len(self._facts)) for name in self.names(at))

    def facts(self, **where: Any) -> Iterator[StoredFact]:
        return (self._facts[entry] for entry in where["entries"] if entry not in self._ended)
