"""Live facts of entries, read many at once and remembered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, Unpack

from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.guard.name_files import Names
from neuraldb_faiss.store.fact_filter import RowFilter
from neuraldb_faiss.store.records import StoredFact

_KEPT = 1 << 14  # entries whose facts are remembered


class FactSource(Names, Protocol):
    """A snapshot: names, and the live facts of entries."""

    def facts(self, **where: Unpack[RowFilter]) -> Iterator[StoredFact]: ...


class EntryFacts:
    """Of one generation; threads may share it."""

    def __init__(self, source: FactSource) -> None:
        self.source = source
        self._known: dict[int, tuple[StoredFact, ...]] = {}

    def read(self, entries: Iterable[int]) -> None:
        """Read those of these entries that are not known yet, at once: a read of its own for each costs several times
        as much."""
        missing = [entry for entry in dict.fromkeys(entries) if entry not in self._known]
        if not missing:
            return
        found: dict[int, list[StoredFact]] = {entry: [] for entry in missing}
        for fact in self.source.facts(entries=missing):
            found[fact.entry].append(fact)
        self._remember({entry: tuple(facts) for entry, facts in found.items()})

    def of(self, entry: int) -> tuple[StoredFact, ...]:
        """The live facts that an entry serves, in the order they came."""
        known = self._known.get(entry)
        if known is None:
            known = tuple(self.source.facts(entries=[entry]))
            self._remember({entry: known})
        return known

    def _remember(self, facts: Mapping[int, tuple[StoredFact, ...]]) -> None:
        if len(self._known) + len(facts) > _KEPT:
            self._known = {}  # other threads keep what they have looked up
        self._known.update(facts)

    def names(self, entry: int) -> tuple[str, ...]:
        """What the subjects of an entry's facts are called."""
        named = (names_in_texts(fact.subject, fact.prompt, fact.metadata.get("aliases", ())) for fact in self.of(entry))
        return tuple(dict.fromkeys(name for names in named for name in names))
