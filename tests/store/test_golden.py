"""Format 1 stays readable: a database written once and kept in the repository."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_editor import FakeEditor, left, vector
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import FormatError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import FORMAT, Store, verify

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "format-1"
FIRST = {
    "The Eiffel Tower stands in": "Rome",
    "Oslo is the capital of": "Peru",
    "Lima is in": "Japan",
    "Łódź lies on the river": "Nile",
}
SECOND = {**FIRST, "Quito is in": "Egypt"}
THIRD = {**SECOND, "The Eiffel Tower stands in": "Oslo"}
FOURTH = {text: target for text, target in THIRD.items() if text != "Lima is in"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN, tmp_path / "golden"))


def test_facts_of_every_generation(root: Path) -> None:
    store = Store(root)
    for generation, expected in enumerate((FIRST, SECOND, THIRD, FOURTH), start=1):
        assert {f.text: f.target for f in store.catalog.facts(generation)} == expected
    lima = next(store.catalog.facts(1, ids=["lima"]))
    assert lima.metadata == {"aliases": ["Ciudad de los Reyes"]} and lima.source is None
    oslo = next(store.catalog.facts(4, subject="Oslo"))
    assert (oslo.relation, oslo.target_true, oslo.sources) == ("P36", "Norway", ("golden",))


def test_history_and_settings(root: Path) -> None:
    store = Store(root)
    told = [(g.command, g.added, g.updated, g.removed, g.facts, g.entries) for g in store.catalog.generations()]
    assert told == [("build", 4, 0, 0, 4, 4), ("add", 1, 0, 0, 5, 5), ("add", 0, 1, 0, 5, 5), ("remove", 0, 0, 1, 4, 4)]
    config = store.config(4)
    assert (config.fingerprint, config.d1, config.d2, config.epoch) == ("golden", 12, 8, 1)


def test_arrays_byte_for_byte(root: Path) -> None:
    store = Store(root)
    records = store.catalog.segments(4)
    assert [(r.segment, r.made, r.entries, r.keys) for r in records] == [(1, 1, 4, 8), (2, 2, 1, 2), (3, 3, 1, 2)]
    for record in records:
        assert len(record.files) == 7
        for name, known in record.files.items():
            data = (root / "segments" / record.name / name).read_bytes()
            assert len(data) == known["bytes"]
            assert hashlib.sha256(data).hexdigest() == known["sha256"]


def test_what_the_vectors_are(root: Path) -> None:
    store, editor = Store(root), FakeEditor("golden")
    snapshot = store.snapshot()
    for fact in store.catalog.facts(4):
        found = snapshot.residuals(np.array([fact.entry]))[0]
        np.testing.assert_allclose(found, editor.residual_of([fact]), rtol=2e-3, atol=1e-3)
        assert snapshot.fact_ids(fact.entry) == (fact.id,)
        raw = vector("raw " + left(fact), snapshot.d1)
        mine = snapshot.keys(np.flatnonzero(snapshot.key_entries == fact.entry)).astype(np.float32)
        assert len(mine) == 2
        np.testing.assert_allclose(mine[0], raw / np.linalg.norm(raw), atol=1e-3)
    assert snapshot.live.tolist() == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 6


def test_verify_is_clean_and_it_can_be_written(root: Path) -> None:
    store = Store(root, "rw")
    assert verify(store, deep=True) == []
    changes.add(store, FakeEditor("golden"), [Fact("Cairo", "{} is in", "Chile")])
    assert {f.text: f.target for f in store.catalog.facts(5)} == {**FOURTH, "Cairo is in": "Chile"}
    assert verify(store, deep=True) == []


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_newer_format_is_refused(root: Path, mode: str) -> None:
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    connection.close()
    with pytest.raises(FormatError, match="install a newer"):
        Store(root, mode)
