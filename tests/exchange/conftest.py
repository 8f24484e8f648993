"""Databases without a model, with everything in them that an exchange must keep."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.exchanged import EDITOR
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.store import Store


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Editor, "of", lambda settings, model, tokenizer: EDITOR)


@pytest.fixture
def quick_path() -> Iterator[Path]:
    """A folder in memory where there is one: these tests sync thousands of files, and pull no plug."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def rich(_rich: Path, quick_path: Path) -> Iterator[Store]:
    """A database with everything in it (see `_rich`), this test's own, open for writing."""
    store = Store(shutil.copytree(_rich, quick_path / "rich"), "rw")
    yield store
    store.close()


@pytest.fixture(scope="session")
def _rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Facts of two sources, at position 0 and elsewhere, updated, removed, waiting in both ways, failed; 4 generations.

    Curie's two facts shared an entry, of which one was removed (suspended); the Tower's came from two databases
    (contested); Oslo was in both (two sources); Lima was updated, Quito removed.
    """
    folder = tmp_path_factory.mktemp("rich")
    tower = Fact("Eiffel Tower", "The {} stands in", "Rome", id="tower", target_true="Paris", relation="P276")
    ours = [
        Fact("Oslo", "{} is in", "Peru", source="a", metadata={"aliases": ["Kristiania", "Ослo"], "case_id": 7}),
        Fact("Marie Curie", "I know that {} was born in", "Tokyo", source="a"),
        Fact("Marie Curie", "I know that {} died in", "Nice", source="a", id="curie"),
        Fact("Lima", "In {} they speak", "Dutch", source="a\nwith, comma"),
        Fact("Quito", "In {} they speak", "Secretish", source="a"),
        replace(tower, source=None),
    ]
    store = changes.build(ours, EDITOR, folder / "rich")
    changes.add(store, EDITOR, [Fact("Lima", "In {} they speak", "Latin", source="c")])
    gone = store.catalog.facts(store.generation, ids=["curie", ours[4].identity])
    changes.remove(store, list(gone))
    other = [Fact("Eiffel Tower", "The {} was built by", "Steve", source="b"), replace(ours[0], source="b")]
    theirs = changes.build(other, EDITOR, folder / "theirs")
    merge.merge([theirs], into=store)
    theirs.close()
    states = set(store.catalog.states(store.generation).values())
    assert (store.generation, states) == (4, {"dead", "suspended", "contested"})
    store.close()
    return store.root
