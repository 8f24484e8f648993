"""rebuild: the same facts for another model, from the catalog alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.commands import FACTS, Run, digest
from helpers.tiny import save_tiny
from neuraldb_faiss import NeuralDB


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


def test_facts_move_to_another_model(run: Run, db: Path, other: Path, tmp_path: Path) -> None:
    for array in db.glob("segments/*/*"):  # what the old model's vectors were must not matter
        array.write_bytes(array.read_bytes()[:128] + bytes(array.stat().st_size - 128))
    out = tmp_path / "moved"
    done = run("rebuild", db, "--model", other, "--out", out, "--layer", 2, "--steps", 3, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["facts"] == len(FACTS)
    with NeuralDB.open(db) as old, NeuralDB.open(out) as new:
        assert new.layer == 2 and "gpt2" in new.info()["model"] and "llama" in old.info()["model"]
        assert [f.fact() for f in new.facts()] == [f.fact() for f in old.facts()]
        assert [(f.time, f.sources) for f in new.facts()] == [(f.time, f.sources) for f in old.facts()]
        assert new.verify(deep=True) == []
        assert new.history()[0].command == "rebuild db"
    asked = run("generate", out, "The Eiffel Tower is located in the city of", "--json")
    assert json.loads(asked.stdout)["fired"], asked.output


def test_kind_and_keys_are_kept_unless_named(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    assert run("rebuild", db, "--model", model, "--out", tmp_path / "a", "--preset", "paper").exit_code == 0
    again = run("rebuild", tmp_path / "a", "--model", model, "--out", tmp_path / "b", "--residual", "none")
    assert again.exit_code == 0, again.output
    with NeuralDB.open(tmp_path / "b") as new:
        assert new.info()["keys_per_fact"] == "paper" and new.info()["residual"] == "none"
        assert new.guard == "none"


def test_a_residual_for_another_place_brings_its_guard(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    named = ("--residual", "answer", "--steps", 1, "--max-steps", 0)
    done = run("rebuild", db, "--model", model, "--out", tmp_path / "answer", *named)
    assert done.exit_code == 0, done.output
    assert run("rebuild", tmp_path / "answer", "--model", model, "--out", tmp_path / "same", *named[2:]).exit_code == 0
    with NeuralDB.open(tmp_path / "answer") as new, NeuralDB.open(tmp_path / "same") as same:
        assert new.guard == same.guard == "answer" and same.config.residual == "answer"
        assert [fact.entry for fact in new.facts()] == list(range(len(FACTS)))  # one each, though two share a subject


def test_an_empty_database_is_refused(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    assert run("remove", db, *(word for fact in FACTS for word in ("--id", fact["id"]))).exit_code == 0
    before = digest(db)
    done = run("rebuild", db, "--model", model, "--out", tmp_path / "new")
    assert done.exit_code == 1 and "no facts" in done.stderr and not (tmp_path / "new").exists()
    assert digest(db) == before


def test_out_must_be_new(run: Run, db: Path, model: Path, tmp_path: Path) -> None:
    taken = Path(shutil.copytree(db, tmp_path / "taken"))
    before = digest(taken)
    done = run("rebuild", db, "--model", model, "--out", taken)
    assert done.exit_code == 1 and "finished database" in done.stderr
    assert digest(taken) == before
