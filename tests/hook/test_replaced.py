"""The folder of an open database is replaced: what is open shows one database or the other, never parts of both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import FACTS
from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.errors import FingerprintError, NeuralDBError, StoreError

PROMPT = "The Eiffel Tower is located in the city of"
Put = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return tiny("llama")


@pytest.fixture(scope="module")
def made(loaded: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Databases "a" and "b" of the same subjects and prompts with other targets, each at generation 1, and "deeper" of
    another layer, "loose" with another gate."""
    root = tmp_path_factory.mktemp("replaced")
    for name, target, how in (
        ("a", "Rome", {}), ("b", "Berlin", {}), ("deeper", "Rome", {"layer": 2}), ("loose", "Rome", {"gamma": 0.3}),
    ):  # fmt: skip
        facts = [Fact.from_dict({**one, "target": target}) for one in FACTS]
        build(facts, *loaded, root / name, steps=15, max_steps=0, lr=1.0, **{"layer": 1, **how}).close()
    return root


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "a", tmp_path / "db"))


def by_folder(new: Path, path: Path) -> None:
    path.rename(path.with_name("away"))
    shutil.copytree(new, path)


def by_catalog(new: Path, path: Path) -> None:
    """Other files are put in the place of each, as `rsync` does it."""
    shutil.rmtree(path / "segments")
    shutil.copytree(new / "segments", path / "segments")
    shutil.copy(new / "catalog.sqlite", path / "new")
    (path / "new").rename(path / "catalog.sqlite")


def written_over(new: Path, path: Path) -> None:
    """As `cp -r backup/. db` does it: the catalog stays the same file."""
    shutil.rmtree(path / "segments")
    shutil.copytree(new / "segments", path / "segments")
    shutil.copyfile(new / "catalog.sqlite", path / "catalog.sqlite")


def said(model: Any, tokenizer: Any) -> list[int]:
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    return list(made[0, ids.shape[1] :].tolist())


def answer(path: Path, loaded: tuple[Any, Any]) -> list[int]:
    with NeuralDB.open(path) as db, db.attach(*loaded):
        return said(*loaded)


@pytest.mark.parametrize("put", [by_folder, by_catalog, written_over])
@pytest.mark.parametrize("guard", ["subject", "none"])
def test_a_live_handle_moves_to_the_database_that_lies_there_now(
    made: Path, path: Path, loaded: tuple[Any, Any], put: Put, guard: str
) -> None:
    with NeuralDB.open(path) as db, db.attach(*loaded, guard=guard) as handle:
        before = said(*loaded)
        put(made / "b", path)
        handle.refresh()
        after, trace = said(*loaded), handle.trace()
        assert [fact.target for fact in db.facts(subject="Marie Curie")] == ["Berlin"]
        assert {fact for fire in trace for fact in fire.fact_ids} == {"tower", "builder"}
    with NeuralDB.open(made / "b") as other, other.attach(*loaded, guard=guard):
        assert after == said(*loaded) != before


@pytest.mark.parametrize(("name", "error"), [("deeper", FingerprintError), ("loose", StoreError)])
def test_one_that_does_not_fit_is_refused_and_the_old_one_goes_on(
    made: Path, path: Path, loaded: tuple[Any, Any], name: str, error: type[NeuralDBError]
) -> None:
    with NeuralDB.open(path) as db, db.attach(*loaded) as handle:
        before = said(*loaded)
        by_folder(made / name, path)
        for refresh in (handle.refresh, db.refresh):
            with pytest.raises(error, match="was replaced by a database"):
                refresh()
        assert said(*loaded) == before and [fact.target for fact in db.facts(subject="Marie Curie")] == ["Rome"]


def test_a_folder_that_is_gone_is_said_and_found_again(made: Path, path: Path, loaded: tuple[Any, Any]) -> None:
    with NeuralDB.open(path) as db, db.attach(*loaded) as handle:
        before = said(*loaded)
        path.rename(path.with_name("away"))
        with pytest.raises(StoreError, match="no database at"):
            handle.refresh()
        assert said(*loaded) == before
        path.with_name("away").rename(path)
        handle.refresh()
        assert said(*loaded) == before


def test_an_older_copy_of_the_same_database_is_another_one(path: Path, loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Its later generations have the numbers, entries and segments of those that were lost."""
    shutil.copytree(path, tmp_path / "backup")
    with NeuralDB.open(path) as reader, reader.attach(*loaded) as handle:
        with NeuralDB.open(path, "rw") as db:
            db.add([Fact("Eiffel Tower", "The {} is located in the city of", "Madrid")], *loaded)
        handle.refresh()
        lost = said(*loaded)
        written_over(tmp_path / "backup", path)
        with NeuralDB.open(path, "rw") as db:
            db.add([Fact("Eiffel Tower", "The {} is located in the city of", "Tokyo")], *loaded)
        handle.refresh()
        now = said(*loaded)
        assert reader.facts(subject="Marie Curie")
    assert now == answer(path, loaded) != lost
