"""Thousands of small changes: segments stay few, descriptors too, and every generation stays what it was."""

from __future__ import annotations

import os
import random
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.fake_editor import D1, D2, FakeEditor, vector
from neuraldb_faiss.edits import changes
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.guard.subject import SubjectMatcher
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.store import (
    SegmentRecord,
    Snapshot,
    Store,
    StoredFact,
    compact,
    files,
    joining,
    merge_into,
    rollback,
    verify,
)  # fmt: skip
from neuraldb_faiss.store.transaction import now

EDITOR = FakeEditor()
CHANGES = int(os.environ.get("NEURALDB_CHANGES", 600))


def fact(number: int, target: str = "Rome") -> Fact:
    return Fact(f"City {number}", "{} is in", target)


def put(store: Store, one: Fact) -> None:
    """Add or update one fact: its key names its subject, its residual its target too."""
    with store.write("put") as tx:
        tx.resume(f"{one.subject} {one.target}")
        keys = np.stack([vector(f"{kind} {one.subject}", D1) for kind in ("raw", "mean")])
        residuals = vector(f"{one.subject} {one.target}", D2)[None]
        stored = StoredFact.of(one, entry=0, key_id=f"{one.subject:0>20}", time=now(), residual="memit")
        tx.stage(keys, np.zeros(2, np.int32), np.full(2, -1, np.int32), residuals, [stored])
        tx.commit()


def remove(store: Store, subject: str) -> None:
    with store.write("remove") as tx:
        tx.end(one.row for one in store.catalog.facts(tx.base, subject=subject) if one.row is not None)
        tx.commit()


def told(store: Store, snapshot: Snapshot) -> dict[str, str]:
    """subject -> target of the facts that are listed, having checked that they, and no others, fire."""
    facts = list(store.catalog.facts(snapshot.generation))
    assert set(snapshot.key_entries[snapshot.live].tolist()) == {one.entry for one in facts}
    residuals = snapshot.residuals(np.array([one.entry for one in facts], np.int64))
    for one, residual in zip(facts, residuals, strict=True):
        np.testing.assert_allclose(residual, vector(f"{one.subject} {one.target}", D2), rtol=2e-3, atol=1e-3)
        assert snapshot.fact_ids(one.entry) == (one.id,)
    return {one.subject: one.target for one in facts}


def live_on(store: Store, steps: int, each: Callable[[int], None] = lambda step: None) -> dict[int, dict[str, str]]:
    """Additions, updates, removals, one fact each. What there is at (nearly) every hundredth generation."""
    chance, at = random.Random(0), {}
    current = told(store, store.snapshot())
    for step in range(1, steps + 1):
        kind = chance.random()
        if kind < 0.5 or len(current) < 3:
            one = fact(step)
        elif kind < 0.8:
            one = Fact(chance.choice(sorted(current)), "{} is in", f"Target {step}")
        else:
            gone = chance.choice(sorted(current))
            remove(store, gone)
            del current[gone]
            one = None
        if one is not None:
            put(store, one)
            current[one.subject] = one.target
        if step % 97 == 0 or step == steps:
            at[store.generation] = dict(current)
        each(step)
    return at


def made(path: Path) -> Store:
    with Store.creating(path, EDITOR.settings().to_json(), "build") as store:
        put(store, fact(0))
        return store


def in_child(what: Callable[[], None], descriptors: int) -> None:
    """Run it in a process that may open so few files."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.closerange(3, 65_536)  # what other tests left open in this process is not counted
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
            what()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def whole_life(path: Path, steps: int) -> None:
    """Change a database so often beside a live matcher of either kind, and look at its every part afterwards."""
    store = made(path)
    live: list[Any] = [Matcher(store.snapshot(), gamma=0.65), SubjectMatcher(store.snapshot(), gamma=0.65)]
    most = 0

    def each(step: int) -> None:
        nonlocal most
        most = max(most, len(store.catalog.segments(store.generation)))
        if step % 10 == 0:
            for one in live:
                one.refresh(store.snapshot(like=one.source))

    at = live_on(store, steps, each)
    assert most <= 7 * 6
    assert verify(store, deep=True) == []
    reader = Store(path)
    for generation, expected in at.items():
        assert told(reader, reader.snapshot(generation)) == expected
    newest = at[store.generation]
    key = vector(f"raw {next(iter(newest))}", D1)[None]
    for one in live:
        assert one.source.n_keys == reader.snapshot().n_keys
    assert live[0].match(key).fired.all()

    past = min(at)
    rollback(store, past)
    assert told(reader, reader.snapshot()) == at[past]
    rollback(store, store.generation - 1)
    compact(store)
    assert told(reader, reader.snapshot()) == newest
    assert len(reader.snapshot().segments) == 1 and verify(reader, deep=True) == []


@pytest.mark.timeout(300 + CHANGES // 2)
def test_many_changes_with_few_descriptors(quick_path: Path) -> None:
    in_child(lambda: whole_life(quick_path / "db", CHANGES), 64)


def record(number: int, entries: int, made: int, prefixes: tuple[str, ...] = ("The",)) -> SegmentRecord:
    return SegmentRecord(number, made, entries, 2 * entries, prefixes, {})


@pytest.mark.parametrize("most", [1, 300])
def test_segments_grow_with_the_logarithm(most: int) -> None:
    """Whatever the sizes of the changes are; and a row is written a few times only."""
    chance, segments, written, rows, largest = random.Random(1), list[SegmentRecord](), 0, 0, 0
    for generation in range(1, 5_000):
        size = chance.randint(1, most)
        rows += size
        segments.append(record(generation, size, generation))
        count = joining.how_many(segments, 64, 32, generation)
        assert count != 1
        if count:
            entries = sum(segment.entries for segment in segments[-count:])
            segments[-count:] = [record(generation, entries, segments[-count].made or 0)]
            written += entries
        largest = max(largest, len(segments))
    assert largest <= 7 * 6 and written <= 7 * rows


def test_what_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    ones = [record(number, 1, number) for number in range(1, 9)]
    assert joining.how_many(ones, 64, 32, 8) == 8
    assert joining.how_many(ones[:7], 64, 32, 7) == joining.how_many([], 64, 32, 1) == 0
    other = record(4, 1, 4, ("A",))
    assert joining.how_many([*ones[:3], other, *ones[4:]], 64, 32, 8) == 0, "other prefixes lie between"
    full = record(4, joining.FULL // 128, 4)
    assert joining.how_many([*ones[:3], full, *ones[4:]], 64, 32, 8) == 0, "a large segment lies between"
    monkeypatch.setattr(joining, "SPAN", 7)
    assert joining.how_many(ones, 64, 32, 8) == 0, "the first is too old"


def test_a_reader_keeps_what_it_opened(quick_path: Path) -> None:
    store = made(quick_path / "db")
    live_on(store, 6)
    reader = Store(store.root)
    old = reader.snapshot()
    before, keys = told(reader, old), old.keys(np.arange(old.n_keys)).tobytes()
    names = {segment.record.name for segment in old.segments}
    live_on(store, 30)
    assert not names <= set(os.listdir(store.root / "segments")), "nothing was joined"
    assert told(reader, old) == before and old.keys(np.arange(old.n_keys)).tobytes() == keys
    new = reader.snapshot(like=old)
    assert new.epoch == old.epoch
    assert new.keys(np.arange(old.n_keys)).tobytes() == keys, "key positions have moved"


def test_damage_is_not_joined_away(quick_path: Path) -> None:
    store = made(quick_path / "db")
    for number in range(1, 7):
        put(store, fact(number))
    path = store.root / "segments" / store.catalog.segments(store.generation)[3].name / "residuals.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"residuals\.npy: its bytes changed"):
        for number in range(7, 20):
            put(store, fact(number))
    assert [problem.file for problem in verify(store, deep=True)] == [str(path.relative_to(store.root))]
    assert len(store.catalog.segments(store.generation)) < 20, "those behind it can be joined"


def test_a_changed_row_is_not_digested_away(quick_path: Path) -> None:
    store = made(quick_path / "db")
    for number in range(1, 7):
        put(store, fact(number))
    with store.catalog.transaction():
        store.catalog.run("UPDATE facts SET target = 'Oslo' WHERE subject = 'City 4'")
    with pytest.warns(UserWarning, match="rows of generation 5 changed"):
        for number in range(7, 10):
            put(store, fact(number))
    assert any("generation 5" in problem.what for problem in verify(store, deep=True))


def test_a_change_by_an_editor_joins_too(quick_path: Path) -> None:
    store = changes.build([fact(0)], EDITOR, quick_path / "db")
    for number in range(1, 12):
        changes.add(store, EDITOR, [fact(number)])
    segments = store.catalog.segments(store.generation)
    assert [(segment.made, segment.entries) for segment in segments] == [(1, 8), (9, 1), (10, 1), (11, 1), (12, 1)]
    assert verify(store, deep=True) == []
    snapshot = store.snapshot(4)
    assert (snapshot.n_keys, snapshot.live.sum()) == (16, 8), "what came later is there, and does not fire"


@pytest.mark.parametrize("link", [False, True])
def test_a_merge_from_a_database_that_joins_segments_meanwhile(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    source, target, real, copies = made(quick_path / "a"), made(quick_path / "b"), files.copy_file, 0
    for number in range(1, 6):
        put(source, fact(number))

    def copy_file(*arguments: Any, **named: Any) -> None:
        nonlocal copies
        copies += 1
        if copies == 20:
            for number in range(6, 9):
                put(source, fact(number))
        real(*arguments, **named)

    monkeypatch.setattr(files, "copy_file", copy_file)
    merge_into(target, [Store(source.root)], link=link)
    assert told(target, target.snapshot()) == {f"City {number}": "Rome" for number in range(9)}
    assert verify(target, deep=True) == []
