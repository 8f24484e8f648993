"""A database's folder is replaced under the running server: all of it is answered from one database, or none of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import openai
import pytest

from helpers.commands import FACTS
from helpers.serving import PROMPT, Alone, Brake, Serve, Served, until
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.models import load_model

AUTH = {"Authorization": "Bearer secret", "X-NeuralDB": "a"}
NEW = {"subject": "Apple", "prompt": "{} was founded by", "target": "Seattle", "id": "apple"}


def put(new: Path, path: Path) -> None:
    """As an admin does it who keeps what was there."""
    path.rename(path.with_name("away"))
    shutil.copytree(new, path)


def targets(served: Served) -> list[str]:
    return [one["target"] for one in served.http.get("/facts", headers=AUTH).json()["data"]]


def test_everything_moves_to_the_database_that_lies_there_now(serve: Serve, alone: Alone, folder: Path) -> None:
    served = serve("a", "b")
    path = served.paths["a"]
    before, other = served.say(PROMPT, "tiny+a"), served.say(PROMPT, "tiny+b")
    put(folder / "b", path)
    assert targets(served) == ["Berlin", "Microsoft", "Madrid", "Japan"]
    assert served.say(PROMPT, "tiny+a") == alone(path, PROMPT) == other != before
    assert served.change("POST", "/facts", json=[NEW])["generation"] == 2
    said = served.say("Apple was founded by", "tiny+a")
    assert said == alone(path, "Apple was founded by", 2) != alone(path, "Apple was founded by", 1)
    with NeuralDB.open(path.with_name("away")) as old:
        assert old.generation == 1 and old.verify(deep=True) == []


def test_a_change_first_is_answered_from_where_it_was_written(serve: Serve, alone: Alone, folder: Path) -> None:
    served = serve()
    put(folder / "b", served.paths["a"])
    assert served.change("POST", "/facts", json=[NEW])["state"] == "succeeded"
    assert served.say(PROMPT) == alone(served.paths["a"], PROMPT, 2)


def test_another_layer_and_gate_of_the_same_model_are_taken_up(
    serve: Serve, alone: Alone, folder: Path, tmp_path: Path
) -> None:
    served = serve()
    facts = [Fact.from_dict({**one, "target": "Berlin"}) for one in FACTS]
    build(facts, *load_model(folder / "tiny"), tmp_path / "new", layer=2, gamma=0.3, steps=15, max_steps=0).close()
    put(tmp_path / "new", served.paths["a"])
    assert served.say(PROMPT) == alone(served.paths["a"], PROMPT)
    explained = served.http.post("/explain", json={"prompt": PROMPT}, headers=AUTH).json()
    assert {fact["target"] for fired in explained["fired"] for fact in fired["facts"]} == {"Berlin"}


def test_one_of_another_model_is_refused_whole_until_one_that_fits_is_back(
    serve: Serve, folder: Path, tmp_path: Path, other_model: Path
) -> None:
    served = serve("a", "b")
    path = served.paths["a"]
    before, other = served.say(PROMPT, "tiny+a"), served.say(PROMPT, "tiny+b")
    put(other_model, path)
    with pytest.raises(openai.InternalServerError, match="replaced by one that was built with another model") as failed:
        served.say(PROMPT, "tiny+a")
    assert failed.value.status_code == 503 and str(tmp_path) not in str(failed.value)
    for method, where, body in (
        ("GET", "/facts", None), ("POST", "/facts", [NEW]), ("DELETE", "/facts/tower", None),
        ("POST", "/explain", {"prompt": PROMPT}),
    ):  # fmt: skip
        answer = served.http.request(method, where, json=body, headers=AUTH)
        assert answer.status_code == 503 and "replaced" in answer.json()["error"]["message"], where
    with NeuralDB.open(path) as db:
        assert db.generation == 1
    assert served.say(PROMPT, "tiny+b") == other
    shutil.rmtree(path)
    path.with_name("away").rename(path)
    assert served.say(PROMPT, "tiny+a") == before and targets(served) == ["Rome", "Steve", "Tokyo", "Italy"]


def test_a_change_under_way_ends_in_neither_database(serve: Serve, alone: Alone, folder: Path) -> None:
    served = serve()
    path = served.paths["a"]
    brake = Brake(served.model)
    try:
        job = served.http.post("/facts", json=[NEW], headers=AUTH).headers["Location"]
        until(lambda: brake.holds)  # it is being solved
        put(folder / "b", path)
    finally:
        brake.release()
    until(lambda: served.http.get(job, headers=AUTH).json()["state"] not in ("queued", "running"))
    told = served.http.get(job, headers=AUTH).json()
    assert told["state"] == "failed" and "replaced" in told["error"]
    for one in (path, path.with_name("away")):
        with NeuralDB.open(one) as db:
            assert db.generation == 1 and db.verify(deep=True) == []
    assert served.say(PROMPT) == alone(path, PROMPT)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers.tiny import tiny

    path = tmp_path_factory.mktemp("other") / "db"
    build([Fact.from_dict(FACTS[0])], *tiny("gpt2"), path, steps=2, max_steps=0).close()
    return path
