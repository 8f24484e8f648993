"""The public functions: the examples in their docstrings, their named arguments, what they print."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build, merge
from neuraldb_faiss.config import IndexConfig
from neuraldb_faiss.errors import SearchError, StoreError
from neuraldb_faiss.options import BuildConfig, BuildOptions

ROME = Fact("Rome", "{} is the capital of", "France")
# In this order each example finds what the one before it left.
VERBS: list[Callable[..., Any]] = [
    build, NeuralDB.open, NeuralDB.facts, merge, NeuralDB.search, NeuralDB.attach, NeuralDB.add, NeuralDB.remove,
    NeuralDB.solve, NeuralDB.rollback, NeuralDB.compact,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the databases `db` (Rome) and `other` (Oslo)."""
    model, tokenizer = tiny()
    for name, fact in (("db", ROME), ("other", Fact("Oslo", "{} is the capital of", "Norway"))):
        build([fact], model, tokenizer, tmp_path / name, layer=1, residual="none")
    return tmp_path


def test_examples_in_docstrings_run(folder: Path) -> None:
    model, tokenizer = tiny()
    known = {
        "folder": folder, "model": model, "tokenizer": tokenizer, "Fact": Fact, "NeuralDB": NeuralDB, "build": build,
        "merge": merge,
    }  # fmt: skip
    runner = doctest.DocTestRunner()
    for verb in VERBS:
        (example,) = doctest.DocTestFinder(recurse=False).find(verb, verb.__qualname__, globs={})
        assert example.examples, f"{verb.__qualname__} has no example"
        example.globs = known
        said: list[str] = []
        assert runner.run(example, out=said.append, clear_globs=False).failed == 0, "".join(said)


def test_config_and_named_arguments_say_the_same(folder: Path) -> None:
    model, tokenizer = tiny()
    wanted = BuildConfig(layer=1, residual="none", guard="none", index={"kind": "ivf", "nlist": 2}, steps=3)
    one = build([ROME], model, tokenizer, folder / "one", config=wanted)
    two = build(
        [ROME], model, tokenizer, folder / "two", layer=1, residual="none", guard="none",
        index=IndexConfig("ivf", {"nlist": 2}), steps=3,
    )  # fmt: skip
    assert one.config == two.config and one.config.objective.steps == 3
    assert build([ROME], model, tokenizer, folder / "three", config=wanted, gamma=0.5).gamma == 0.5
    again = one.rebuild(folder / "four", model, tokenizer, layer=0, residual=None)
    assert (again.layer, again.guard, again.config.residual) == (0, "none", "none")


def test_an_unknown_name_is_refused_before_anything_is_made(folder: Path) -> None:
    model, tokenizer = tiny()
    with pytest.raises(TypeError, match="stepz"):
        build([ROME], model, tokenizer, folder / "new", stepz=3)  # type: ignore[call-arg]
    with pytest.raises(SearchError, match="no index kind has an option 'lists'"):
        build([ROME], model, tokenizer, folder / "new", index={"kind": "ivf", "lists": 3})
    with pytest.raises(SearchError, match="nlist is '3': it must be a whole number"):
        build([ROME], model, tokenizer, folder / "new", index={"kind": "ivf", "nlist": "3"})
    with pytest.raises(SearchError, match="unknown index kind 'hnsw'"):
        build([ROME], model, tokenizer, folder / "new", index={"kind": "hnsw"})
    assert not (folder / "new").exists()


def test_named_arguments_are_the_fields_of_the_config() -> None:
    assert list(BuildOptions.__annotations__) == list(BuildConfig.__dataclass_fields__)
    for verb in VERBS:
        assert len(inspect.signature(verb).parameters) - (verb.__qualname__ != verb.__name__) <= 7, verb


def test_info_and_database_print_what_they_are(folder: Path) -> None:
    with NeuralDB.open(folder / "db") as db:
        assert repr(db) == f"<NeuralDB {folder / 'db'} generation 1: 1 facts at layer 1>"
        info = db.info()
        lines = dict(line.split(maxsplit=1) for line in repr(info).splitlines())
        assert (lines["facts"], lines["gamma"], lines["guard"], lines["index"]) == ("1", "0.45", "subject", "kind flat")
        assert "<tr><th>gamma</th><td>0.45</td></tr>" in db._repr_html_() and info == dict(info)


def test_what_a_notebook_shows_of_a_closed_database(folder: Path) -> None:
    """No traceback in place of the object; its verbs say what to do."""
    db = NeuralDB.open(folder / "db")
    (fact,) = db.facts()
    assert repr(fact) == f"<StoredFact {fact.id}: 'Rome is the capital of' -> 'France'>"
    db.close()
    assert "was closed: open it again" in repr(db) and "was closed" in db._repr_html_()
    for verb in (db.facts, db.info, db.history, lambda: len(db)):
        with pytest.raises(StoreError, match="db was closed: open it again"):
            verb()
