"""Build, add, remove, solve, rollback, compact on a real store with made-up vectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.fake_editor import FakeEditor, left, vector
from helpers.pieces import set_piece
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import FactError, LockedError, StoreError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, rollback, verify

EDITOR = FakeEditor()


def fact(subject: str, target: str = "Rome", relation: str = "{} is in") -> Fact:
    return Fact(subject=subject, prompt=relation, target=target, source="test")


def shown(store: Store, at: int | None = None) -> dict[str, str]:
    generation = store.generation if at is None else at
    return {f.text: f.target for f in store.catalog.facts(generation)}


def firing(store: Store, subject: str) -> np.ndarray | None:
    """The residual that fires for a subject's raw key, as brute force finds it; None where nothing fires."""
    snapshot = store.snapshot()
    if not snapshot.live.any():
        return None
    key = vector("raw " + left(fact(subject)), snapshot.d1)
    keys = snapshot.keys(np.arange(snapshot.n_keys)).astype(np.float64)
    cosines = keys @ key / np.linalg.norm(keys, axis=1) / np.linalg.norm(key)
    cosines[~snapshot.live] = -2
    best = int(cosines.argmax())
    return snapshot.residuals(snapshot.key_entries[[best]])[0] if cosines[best] > 0.999 else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return changes.build([fact("Paris"), fact("Oslo"), fact("Lima")], EDITOR, tmp_path / "db")


def assert_fires(store: Store, *group: Fact) -> None:
    found = firing(store, group[0].subject)
    assert found is not None
    np.testing.assert_allclose(found, EDITOR.residual_of(group), rtol=2e-3, atol=1e-3)


def test_build_then_reopen(store: Store) -> None:
    again = Store(store.root)
    assert shown(again) == {"Paris is in": "Rome", "Oslo is in": "Rome", "Lima is in": "Rome"}
    assert again.generation == 1
    assert verify(again, deep=True) == []
    assert_fires(again, fact("Oslo"))


def test_add_updates_and_counts(store: Store) -> None:
    done = changes.add(store, EDITOR, [fact("Oslo", "Kyiv"), fact("Quito"), fact("Paris")])
    assert done is not None and (done.added, done.updated, done.removed, done.facts) == (1, 1, 0, 4)
    assert shown(store)["Oslo is in"] == "Kyiv"
    assert shown(store, 1)["Oslo is in"] == "Rome"
    assert_fires(store, fact("Oslo", "Kyiv"))
    assert changes.add(store, EDITOR, [fact("Oslo", "Kyiv")]) is None
    assert store.generation == 2


def test_a_second_fact_of_a_subject_joins_its_entry(store: Store) -> None:
    second = fact("Oslo", "Ibsen", "{} was founded by")
    done = changes.add(store, EDITOR, [second])
    assert done is not None and (done.added, done.updated, done.facts, done.entries) == (1, 0, 4, 3)
    assert_fires(store, fact("Oslo"), second)
    entry = next(f.entry for f in store.catalog.facts(store.generation, subject="Oslo"))
    assert len(store.snapshot().fact_ids(entry)) == 2


def test_remove_one_of_two_suspends_until_solved(store: Store) -> None:
    second = fact("Oslo", "Ibsen", "{} was founded by")
    changes.add(store, EDITOR, [second])
    doomed = [f for f in store.catalog.facts(store.generation, subject="Oslo") if f.target == "Ibsen"]
    done = changes.remove(store, doomed)
    assert (done.removed, done.facts) == (1, 3)
    assert firing(store, "Oslo") is None
    waiting = list(store.catalog.facts(store.generation, waiting=True))
    assert [f.text for f in waiting] == ["Oslo is in"]
    assert verify(store, deep=True) == []
    assert changes.solve(store, EDITOR) is not None
    assert_fires(store, fact("Oslo"))
    assert changes.solve(store, EDITOR) is None


def test_remove_with_an_editor_solves_at_once(store: Store) -> None:
    second = fact("Oslo", "Ibsen", "{} was founded by")
    changes.add(store, EDITOR, [second])
    doomed = [f for f in store.catalog.facts(store.generation, subject="Oslo") if f.target == "Rome"]
    done = changes.remove(store, doomed, EDITOR)
    assert (done.added, done.updated, done.removed) == (0, 0, 1)
    assert_fires(store, second)
    assert not list(store.catalog.facts(store.generation, waiting=True))


def test_remove_refuses_what_is_not_there(store: Store) -> None:
    with pytest.raises(FactError, match="nothing to remove"):
        changes.remove(store, [])


def test_rollback_and_back_again(store: Store) -> None:
    changes.add(store, EDITOR, [fact("Oslo", "Kyiv"), fact("Quito")])
    changes.remove(store, [f for f in store.catalog.facts(2) if f.subject == "Paris"])
    before, first = shown(store), shown(store, 1)
    done = rollback(store, 1)
    assert (done.added, done.updated, done.removed, done.facts) == (1, 1, 1, 3)
    assert shown(store) == first
    assert_fires(store, fact("Oslo"))
    assert_fires(store, fact("Paris"))
    assert firing(store, "Quito") is None
    rollback(store, 3)
    assert shown(store) == before
    assert firing(store, "Paris") is None
    assert verify(store, deep=True) == []
    with pytest.raises(StoreError, match="generation 99 does not exist"):
        rollback(store, 99)


def test_compact_keeps_facts_and_ends_history(store: Store) -> None:
    changes.add(store, EDITOR, [fact("Oslo", "Kyiv"), fact("Quito")])
    changes.remove(store, [f for f in store.catalog.facts(2) if f.subject == "Paris"])
    before = shown(store)
    reader = Store(store.root).snapshot()
    compact(store)
    assert shown(store) == before
    snapshot = store.snapshot()
    assert snapshot.live.all() and snapshot.n_entries == 3
    assert_fires(store, fact("Oslo", "Kyiv"))
    assert verify(store, deep=True) == []
    with pytest.raises(StoreError, match="compacted away"):
        rollback(store, 1)
    # A reader from before keeps its arrays.
    assert len(reader.keys(np.arange(reader.n_keys))) == 10
    changes.add(store, EDITOR, [fact("Cairo")])
    assert verify(store, deep=True) == []


def test_an_unpublished_add_stays_invisible_and_resumes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    set_piece(monkeypatch, 2)
    calls = {"n": 0}

    class Killed(FakeEditor):
        def make_residuals(self, groups, **how):  # type: ignore[no-untyped-def]
            calls["n"] += 1
            if calls["n"] == 3:
                raise KeyboardInterrupt
            return super().make_residuals(groups, **how)

    many = [fact(f"City {n}") for n in range(9)]
    with pytest.raises(KeyboardInterrupt):
        changes.add(store, Killed(), many)
    assert store.generation == 1 and len(shown(store)) == 3
    # Another command in between neither publishes nor drops it.
    changes.remove(store, [f for f in store.catalog.facts(1) if f.subject == "Lima"])
    assert len(shown(store)) == 2
    done = changes.add(store, Killed(), many)
    assert calls["n"] == 6  # 5 pieces, the third twice
    assert done is not None and done.added == 9
    assert verify(store, deep=True) == []
    for one in many:
        assert_fires(store, one)


def test_a_second_writer_is_told_of_the_first(store: Store) -> None:
    with store.write("first"), pytest.raises(LockedError, match="`first`"), Store(store.root, "rw").write("b", wait=0):
        pass


def test_a_reader_may_not_write(store: Store) -> None:
    with pytest.raises(StoreError, match="opened for reading"), Store(store.root).write("x"):
        pass


def test_two_facts_with_one_id_are_refused(store: Store) -> None:
    twins = [Fact("Bonn", "{} is in", "Rome", id="x"), Fact("Ulm", "{} is in", "Rome", id="x")]
    with pytest.raises(FactError, match="'x'"):
        changes.add(store, EDITOR, twins)
    assert store.generation == 1
