"""What makes loading quick must not show: the digest's bytes, the indices, nested transactions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from neuraldb_faiss.edits.merge import merge
from neuraldb_faiss.research.benchmarks import synthetic
from neuraldb_faiss.store import Store, verify
from neuraldb_faiss.store.records import canonical, canonical_rows
from neuraldb_faiss.store.schema import TABLES

values = some.one_of(
    some.none(), some.integers(), some.floats(allow_nan=False), some.text(),
    some.lists(some.sampled_from('],"[\\ \n\x1f'), max_size=9).map("".join),
)  # fmt: skip


@settings(deadline=None)
@given(rows=some.lists(some.lists(values, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6))
def test_rows_together_are_spelled_as_each_alone(rows: list[tuple[object, ...]]) -> None:
    assert canonical_rows(rows) == "".join(canonical(list(row)) for row in rows)


def test_a_transaction_inside_another_is_part_of_it(tmp_path: Path) -> None:
    store = synthetic.make(tmp_path / "db", 3, d1=4, d2=4)
    with pytest.raises(KeyError), store.catalog.transaction():
        with store.catalog.transaction():
            store.catalog.set_counter("entries", 99)
        assert store.catalog.changing and store.catalog.counter("entries") == 99
        raise KeyError
    assert not store.catalog.changing and store.catalog.counter("entries") == 3


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("into", [False, True])
def test_many_databases_merge_and_every_index_is_back(tmp_path: Path, link: bool, into: bool) -> None:
    """More of them than SQLite attaches at once; the first is smaller than what comes, so its indices are remade."""
    sources = [synthetic.make(tmp_path / f"s{n}", 4, d1=4, d2=4, first=4 * n) for n in range(13)]
    if into:
        target = synthetic.make(tmp_path / "out", 2, d1=4, d2=4, first=900)
        merged = merge(sources, into=target, link=link)[0]
    else:
        merged = merge(sources, out=tmp_path / "out", link=link)[0]
    merged.close()
    again = Store(tmp_path / "out")
    assert verify(again, deep=True) == []
    found: dict[str, str] = dict(
        again.catalog.all("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_auto%'")
    )
    assert found == TABLES
    facts = list(again.catalog.facts(again.generation))
    assert len(facts) == 52 + 2 * into
    assert sorted({fact.entry for fact in facts}) == list(range(52 + 2 * into))
    assert {fact.made for fact in facts} == ({1, 2} if into else {1})
    whole, first = again.snapshot(), np.array([0])
    for source, fact in zip(sources, facts[2 * into :: 4], strict=True):  # the first fact of each
        own = np.flatnonzero(whole.key_entries == fact.entry)[:1]
        assert (whole.keys(own) == source.snapshot().keys(first)).all()


def test_an_interrupted_build_does_not_hide_its_names_from_a_live_reader(tmp_path: Path) -> None:
    """Rows staged early and published late are below rows that were seen before."""
    store = synthetic.make(tmp_path / "db", 3, d1=4, d2=4)
    with store.catalog.transaction():
        store.catalog.run("UPDATE facts SET made = 3 WHERE row = 2")
        for number in (2, 3):
            store.catalog.run("INSERT INTO generations VALUES (?, '', '', 0, 0, 0, 3, 3, '')", (number,))
    assert [name for _, _, name in store.snapshot(2).subject_names()] == ["Subject 0", "Subject 2"]
    assert [name for _, _, name in store.snapshot(3).subject_names(after=2)] == ["Subject 1"]
    stamps = [store.snapshot().stamp_of(number) for number in (1, 2, 3)]
    assert len({*stamps}) == 3 and None not in stamps and store.snapshot().stamp_of(9) is None
