"""Check that each fact's own prompt asks for it, as the guard "answer" reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Unpack

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.grounding.ground import Grounder
from neuraldb_faiss.store.fact_filter import RowFilter
from neuraldb_faiss.store.records import StoredFact


def unasked(facts: Sequence[Fact]) -> list[int]:
    """Which of these facts can never fire under the guard "answer": their indices, ascending."""
    grounder = Grounder(_Listed(facts))
    return [
        number
        for number, fact in enumerate(facts)
        if not any(one.identity == fact.identity for one in grounder.asked(fact.text))
    ]


class _Listed:
    """Facts that no database holds yet, as a snapshot in which each has the entry of its index."""

    epoch = generation = 0
    search_folder: Path | None = None
    floors: Mapping[str, float] = {}

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._facts = [
            StoredFact.of(fact, entry=number, time="", key_id="", residual="") for number, fact in enumerate(facts)
        ]

    def stamp_of(self, generation: int) -> str | None:
        return None

    def names(self, entry_id: int) -> tuple[str, ...]:
        fact = self._facts[entry_id]
        return tuple(names_in_texts(fact.subject, fact.prompt, fact.metadata.get("aliases", ())))

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        return ((0, number, name) for number in range(len(self._facts)) for name in self.names(number))

    def facts(self, **where: Unpack[RowFilter]) -> Iterator[StoredFact]:
        return (self._facts[entry] for entry in where.get("entries") or range(len(self._facts)))
