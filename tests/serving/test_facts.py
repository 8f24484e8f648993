"""Facts over HTTP: listed, added, removed, explained; who may; what a change leaves alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import FACTS, digest
from helpers.serving import PROMPT, Alone, Brake, Serve, Served, until
from neuraldb_faiss import Fact, NeuralDB
from neuraldb_faiss.models import load_model
from neuraldb_faiss.store import Store

APPLE = {"subject": "Apple", "prompt": "{} was founded by", "target": "Seattle", "id": "apple"}
APPLE_TEXT = "Apple was founded by"
AUTH = {"Authorization": "Bearer secret"}


def test_facts_are_listed_in_pages_and_found(serve: Serve) -> None:
    http = serve().http
    page = http.get("/facts", params={"limit": 3}).json()
    assert (page["database"], page["generation"], len(page["data"])) == ("a", 1, 3)
    rest = http.get("/facts", params={"limit": 3, "after": page["next"]}).json()
    assert [one["id"] for one in page["data"] + rest["data"]] == [one["id"] for one in FACTS]
    assert rest["next"] is None
    found = http.get("/facts", params={"subject": "Eiffel  Tower"}).json()["data"]
    assert [one["target"] for one in found] == ["Rome", "Steve"]
    assert [one["id"] for one in http.get("/facts", params={"contains": "ital"}).json()["data"]] == ["paris"]
    assert http.get("/facts", params={"contains": "%"}).json()["data"] == []


def test_a_fact_is_added_updated_and_removed_for_the_next_request(serve: Serve, alone: Alone) -> None:
    served = serve()
    path = served.paths["a"]
    before = served.say(APPLE_TEXT)
    added = served.change("POST", "/facts", json=[APPLE])
    assert (added["state"], added["generation"], added["added"], added["done"]) == ("succeeded", 2, 1, 1)
    said = served.say(APPLE_TEXT)
    assert said == alone(path, APPLE_TEXT, 2)
    assert said != before
    changed = served.change("POST", "/facts", json={"facts": [{**APPLE, "target": "Tokyo"}]})
    assert (changed["generation"], changed["updated"]) == (3, 1)
    assert served.say(APPLE_TEXT) == alone(path, APPLE_TEXT, 3)
    same = served.change("POST", "/facts", json=[{**APPLE, "target": "Tokyo"}])
    assert (same["state"], same["generation"], same["added"]) == ("succeeded", 3, 0)  # nothing was new
    gone = served.change("DELETE", "/facts/apple")
    assert (gone["kind"], gone["generation"], gone["removed"]) == ("remove", 4, 1)
    assert served.say(APPLE_TEXT) == before
    assert [one.command for one in NeuralDB.open(path).history()][1:] == [
        "serve: POST /facts", "serve: POST /facts", "serve: DELETE /facts",
    ]  # fmt: skip


def test_removing_one_of_two_facts_of_an_entry_solves_the_other_anew(serve: Serve) -> None:
    served = serve()
    assert served.change("DELETE", "/facts/tower")["state"] == "succeeded"
    with NeuralDB.open(served.paths["a"]) as db:
        assert db.info()["waiting"] == 0 and [one.id for one in db.facts(subject="Eiffel Tower")] == ["builder"]


def test_what_is_solved_while_serving_is_what_is_solved_alone(serve: Serve, folder: Path, tmp_path: Path) -> None:
    """The solver meets the model without any database: the residual is that of a model that serves nothing."""
    served = serve("a", "b")
    update = {**FACTS[2], "target": "Seattle"}
    # b has a fact of the very same subject and prompt: were it to fire, the residual would be another one
    assert served.change("POST", "/facts", json=[update])["state"] == "succeeded"
    alone = tmp_path / "alone"
    shutil.copytree(folder / "a", alone)
    model, tokenizer = load_model(folder / "tiny")
    with NeuralDB.open(alone, "rw") as db:
        db.add([Fact.from_dict(update)], model, tokenizer)
        expected = db.facts(ids=["curie"])[0]
        residual = db.snapshot.residuals([expected.entry])
    with NeuralDB.open(served.paths["a"]) as db:
        found = db.facts(ids=["curie"])[0]
        assert found.target == "Seattle" and found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert db.snapshot.residuals([found.entry]) == pytest.approx(residual, rel=1e-2, abs=1e-3)


def test_a_change_of_another_process_is_seen_too(serve: Serve, alone: Alone) -> None:
    served = serve()
    edited = served.say(PROMPT)
    with NeuralDB.open(served.paths["a"], "rw") as db:
        db.remove(["tower", "builder"])
        assert served.say(PROMPT) == alone(None, PROMPT) != edited
        db.rollback(1)
        assert served.say(PROMPT) == edited
        assert served.metric('neuraldb_generation{database="a"}') == 3
        db.compact()
    assert served.say(PROMPT) == edited and served.metric('neuraldb_generation{database="a"}') == 4


def test_explain_says_which_fact_fired_where(serve: Serve) -> None:
    served = serve()
    found = served.http.post("/explain", json={"prompt": PROMPT, "max_tokens": 4}).json()
    assert "".join(found["tokens"][: found["prompt_tokens"]]) == PROMPT
    assert found["text"] == served.say(PROMPT, max_tokens=4) and found["generation"] == 1
    (fired,) = found["fired"]
    assert (fired["position"], fired["token"]) == (6, "er") and fired["score"] > 0.99
    assert [fact["id"] for fact in fired["facts"]] == ["tower", "builder"]
    chat = served.http.post("/explain", json={"messages": [{"role": "user", "content": PROMPT}]}).json()
    assert PROMPT in "".join(chat["tokens"]) and chat["prompt_tokens"] > 13
    assert served.http.post("/explain", json={"prompt": "Berlin is in"}).json()["fired"] == []
    assert served.http.post("/explain", json={}).status_code == 400


def test_one_fact_alone_is_added(serve: Serve) -> None:
    served = serve()
    job = served.change("POST", "/facts", json=APPLE)
    assert job["state"] == "succeeded" and job["added"] == 1
    found = served.http.get("/facts", params={"subject": "Apple"}).json()["data"]
    assert [one["target"] for one in found] == ["Seattle"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], "facts"),
        ([{"subject": "x", "prompt": "{} is"}], "facts[0]: field 'target' is missing"),
        ([APPLE, {**APPLE, "target": "Rome"}], "conflicts: 1"),
        ([{**APPLE, "subject": "Pear", "prompt": "Apple is"}], "is not in the prompt"),
        ([{**APPLE, "target": "word " * 300}], "tokens"),
        ([APPLE] * 6, "6 facts"),
        ("text", "the body must be an object"),
        (5, "the body must be an object"),
        (["text"], "facts[0] must be an object"),
        ({"facts": APPLE}, "facts must be a list"),
        ({"facts": None}, "facts must be a list"),
        ({"fact": APPLE}, "facts is missing"),
        ({"facts": [APPLE], "on_conflict": "frist"}, "on_conflict must be one of 'error', 'first' or 'last'"),
        ({"facts": [APPLE], "on_conflct": "first"}, "on_conflct is no field that this server knows"),
        ({"subject": "x", "prompt": "{} is"}, "facts[0]: field 'target' is missing"),
    ],
)
def test_bad_facts_change_nothing(serve: Serve, body: Any, told: str) -> None:
    served = serve(facts=5, prompt_tokens=100)
    before = digest(served.paths["a"])
    answer = served.http.post("/facts", json=body, headers=AUTH)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert told in f"{error['param']} {error['message']}"
    assert digest(served.paths["a"]) == before


@pytest.mark.parametrize(
    "field", ['"metadata": {"a": ["\\ud800"]}', '"\\udc00": 1', '"source": "\\ud800"', '"new": "\\udfff"']
)
def test_half_of_a_surrogate_pair_is_refused_at_once(serve: Serve, field: str) -> None:
    served = serve()
    before = digest(served.paths["a"])
    body = json.dumps(APPLE)[:-1] + f", {field}}}"
    headers = {**AUTH, "Content-Type": "application/json"}
    answer = served.http.post("/facts", content=f"[{body}]", headers=headers)
    assert answer.status_code == 400
    assert "half of a surrogate pair" in answer.json()["error"]["message"]
    assert digest(served.paths["a"]) == before


def test_a_change_that_fails_says_why_and_changes_nothing(serve: Serve) -> None:
    served = serve()
    job = served.change("POST", "/facts", json=[{**APPLE, "id": "tower"}])  # the id of another fact
    assert (job["state"], job["generation"], job["added"]) == ("failed", None, 0) and "tower" in job["error"]
    with NeuralDB.open(served.paths["a"]) as db:
        assert db.generation == 1 and len(db) == 4 and db.verify(deep=True) == []
    assert served.change("POST", "/facts", json=[APPLE])["generation"] == 2


def test_changes_need_the_token(serve: Serve) -> None:
    served = serve()
    before = digest(served.paths["a"])
    for wrong in (None, "Bearer wrong", "Basic secret", "secret"):
        headers = {} if wrong is None else {"Authorization": wrong}
        for method, path in (("POST", "/facts"), ("DELETE", "/facts/tower")):
            answer = served.http.request(method, path, headers=headers, json=[APPLE])
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["WWW-Authenticate"] == "Bearer" and "secret" not in answer.text
    assert digest(served.paths["a"]) == before
    assert served.http.get("/facts").status_code == 200  # reading is free


def test_without_a_token_changes_are_off(serve: Serve) -> None:
    answer = serve(common=None).http.post("/facts", json=[APPLE], headers=AUTH)
    assert answer.status_code == 403 and "--token" in answer.json()["error"]["message"]


def test_unknown_facts_and_jobs(serve: Serve) -> None:
    served = serve()
    missing = served.http.delete("/facts/no such: {} id", headers=AUTH)
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "no_fact"
    assert served.http.get("/jobs/job-1").json()["error"]["code"] == "no_job"


def test_a_change_waits_for_another_writer_and_requests_do_not(serve: Serve) -> None:
    served = serve()
    store = Store(served.paths["a"], "rw")
    with store.write("another process"):
        answer = served.http.post("/facts", json=[APPLE], headers=AUTH)
        for _ in range(3):
            served.say(PROMPT)
        assert served.http.get(answer.headers["Location"]).json()["state"] in ("queued", "running")
    store.close()
    assert served.change("DELETE", "/facts/curie")["generation"] == 3  # made after the first one, which is done too
    assert served.http.get(answer.headers["Location"]).json()["generation"] == 2


def test_requests_are_answered_between_two_facts_of_a_change(serve: Serve, alone: Alone) -> None:
    """The generation before the change answers while it is solved, and the solver leaves nothing on the model."""
    served = serve()
    several = [{"subject": f"Apple {n}", "prompt": "{} was founded by", "target": "Madrid"} for n in range(6)]
    brake = Brake(served.model)
    try:
        job = served.http.post("/facts", json=several, headers=AUTH).headers["Location"]
        answers = _asked_meanwhile(served, brake, job)
    finally:
        brake.release()
    assert answers == [alone(served.paths["a"], PROMPT, 1)]


def _asked_meanwhile(served: Served, brake: Brake, job: str) -> list[str]:
    """What a request is told that comes, and is answered, while the change runs."""
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(served.say(PROMPT)))
    until(lambda: served.http.get(job).json()["state"] == "running")
    asking.start()
    until(lambda: served.metric("neuraldb_queue_length") == 1)
    while asking.is_alive():
        brake.go(1)
        time.sleep(0.005)
    assert served.http.get(job).json()["state"] == "running"
    return answers
