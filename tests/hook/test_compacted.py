"""Another process changes facts and compacts: what is open stays as it was, or moves on and says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import FACTS
from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.errors import CompactedError
from neuraldb_faiss.serving.tenants import Tenant

TOWER, CURIE = "The Eiffel Tower is located in the city of", "I know that Marie Curie was born in"


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return tiny("llama")


@pytest.fixture(scope="module")
def made(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compacted") / "db"
    build([Fact.from_dict(one) for one in FACTS], *loaded, path, layer=1, steps=15, max_steps=0, lr=1.0).close()
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "db"))


def elsewhere(path: Path, *calls: str) -> None:
    """In another process, of this object opened for writing."""
    code = f"from neuraldb_faiss import NeuralDB\ndb = NeuralDB.open({str(path)!r}, 'rw')\n"
    subprocess.run([sys.executable, "-c", code + "\n".join(f"db.{call}" for call in calls)], check=True)


def said(prompt: str, model: Any, tokenizer: Any) -> list[int]:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return list(made[0, ids.shape[1] :].tolist())


def without_size(db: NeuralDB) -> dict[str, Any]:
    return {name: value for name, value in db.info().items() if name != "bytes"}


@pytest.mark.parametrize("guard", ["subject", "none"])
def test_a_compaction_alone_takes_nothing_from_a_reader(path: Path, loaded: tuple[Any, Any], guard: str) -> None:
    elsewhere(path, "remove('paris')")
    with warnings.catch_warnings(), NeuralDB.open(path) as db, db.attach(*loaded, guard=guard) as handle:
        warnings.simplefilter("error")
        facts, info, history = db.facts(), without_size(db), db.history()
        elsewhere(path, "compact()")
        answer = said(CURIE, *loaded)
        assert {fact for fire in handle.trace() for fact in fire.fact_ids} == {"curie"}
        assert (db.facts(), without_size(db), db.history()[:-1]) == (facts, info, history)
        assert db.generation == 2 and db.refresh() == 3
        handle.refresh()
        assert said(CURIE, *loaded) == answer


@pytest.mark.parametrize("guard", ["subject", "none"])
def test_a_handle_names_what_fired_and_moves_on_where_facts_are_forgotten(
    path: Path, loaded: tuple[Any, Any], guard: str
) -> None:
    plain = said(CURIE, *loaded)
    with NeuralDB.open(path) as db, db.attach(*loaded, guard=guard) as handle:
        tower = said(TOWER, *loaded)
        elsewhere(path, "remove('curie')", "remove(['tower', 'builder'])", "compact()")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert {fact for fire in handle.trace() for fact in fire.fact_ids} == {"tower", "builder"}
            assert said(TOWER, *loaded) == tower, "what is known of generation 1 goes on answering"
        with pytest.warns(UserWarning, match="generation 1, which was open, has been compacted away since: the newest"):
            assert said(CURIE, *loaded) == plain, "Marie Curie is removed"
        handle.clear_trace()
        assert said(TOWER, *loaded) != tower and handle.trace() == []


def test_a_served_database_moves_on_inside_a_batch(path: Path, loaded: tuple[Any, Any]) -> None:
    plain, tenant = said(CURIE, *loaded), Tenant("facts", path, *loaded, 100)
    tenant.answer([0], 1)
    elsewhere(path, "remove('curie')", "compact()")
    with pytest.warns(UserWarning, match="the newest generation answers from now on"):
        assert said(CURIE, *loaded) == plain
    tenant.refresh()
    assert (tenant.generation, tenant.facts) == (3, 3)
    tenant.close()


def test_an_object_moves_to_the_newest_generation_and_says_so(path: Path, loaded: tuple[Any, Any]) -> None:
    with NeuralDB.open(path) as db:
        key = db.snapshot.keys(db.snapshot.key_entries == 0)
        elsewhere(path, "remove('curie')", "compact()")
        assert db.search(key).fired.all() and db.generation == 1
        with pytest.raises(CompactedError, match="generation 1 was compacted away; there are 3 to 3"):
            db.facts(at=1)
        with pytest.warns(UserWarning, match="has been compacted away since: generation 3 is shown from now on"):
            assert {fact.id for fact in db.facts()} == {"tower", "builder", "paris"}
        assert db.generation == 3 and db.info()["facts"] == len(db) == 3


def test_attaching_and_counting_move_on_too(path: Path, loaded: tuple[Any, Any]) -> None:
    with NeuralDB.open(path) as one, NeuralDB.open(path) as other:
        elsewhere(path, "remove('curie')", "compact()")
        with pytest.warns(UserWarning, match="generation 3 is shown from now on"):
            assert one.info()["facts"] == 3
        with pytest.warns(UserWarning, match="generation 3 is shown from now on"), other.attach(*loaded) as handle:
            said(TOWER, *loaded)
            assert {fact for fire in handle.trace() for fact in fire.fact_ids} == {"tower", "builder"}
