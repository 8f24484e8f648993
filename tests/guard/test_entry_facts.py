"""Facts of entries are read together, and once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from helpers.stated import Stated
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.guard.entry_facts import EntryFacts
from neuraldb_faiss.store.records import StoredFact


class Counting(Stated):
    """Remembers which entries were asked for."""

    def __init__(self, facts: list[Fact], **more: Any) -> None:
        super().__init__(facts, **more)
        self.asked: list[list[int]] = []

    def facts(self, **where: Any) -> Iterator[StoredFact]:
        self.asked.append(list(where["entries"]))
        return super().facts(**where)


FACTS = [Fact("Nokia", "{} is led by", "Ann"), Fact("Nokia", "{} sits in", "Lima"), Fact("Oslo", "{} lies in", "Peru")]


def test_what_a_text_names_is_read_at_once() -> None:
    source = Counting(FACTS)
    one = Grounder(source)
    assert len(one.ground("Nokia and Oslo").facts) == 3
    assert [sorted(some) for some in source.asked] == [[0, 1, 2]]
    assert len(one.ground("Oslo, then Nokia").facts) == 3 and len(source.asked) == 1


def test_an_entry_is_called_what_its_live_facts_are() -> None:
    aliases = Fact("Oslo", "{} lies in", "Peru", metadata={"aliases": ["Kristiania"]})
    facts = EntryFacts(Counting([*FACTS[:2], aliases], ended=[1]))
    assert facts.names(2) == ("Oslo", "Kristiania") and facts.names(0) == ("Nokia",) and facts.names(1) == ()
    facts.read([0, 1, 2])
    assert [fact.target for entry in range(3) for fact in facts.of(entry)] == ["Ann", "Peru"]
