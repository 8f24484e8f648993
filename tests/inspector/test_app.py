"""The page's routes: who may, what they tell, and that changes are made as the server makes them."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.models import load_model

from .conftest import EVIL, NAME, PROMPT, SAID

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

AUTH = {"Authorization": "Bearer secret"}


@pytest.fixture
def http(folder: Path, db: Path) -> Iterator[Any]:
    """A client of the application, with its worker running."""
    with serving(folder, {NAME: db}) as client:
        yield client


@contextmanager
def serving(folder: Path, named: dict[str, Path]) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from neuraldb_faiss.inspector.app import Inspected, routes
    from neuraldb_faiss.serving.app import make_app
    from neuraldb_faiss.serving.lifecycle import Lifecycle
    from neuraldb_faiss.serving.metrics import Metrics
    from neuraldb_faiss.serving.model_backend import model_backend
    from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens

    settings = ServerSettings(Tokens(None, dict.fromkeys(named, "secret")), Limits(grace=5.0, new_tokens=64))
    page, lifecycle = Inspected(named), Lifecycle(Metrics())
    with TestClient(make_app(lifecycle, settings, [routes(page)]), "http://localhost") as client:
        lifecycle.serve(model_backend(lambda: load_model(folder / "tiny"), named, settings, lifecycle.metrics))
        yield client
    page.close()


def finished(http: Any, answer: Any) -> dict[str, Any]:
    """The job that was accepted, when it is done."""
    assert answer.status_code == 202, answer.text
    end = time.monotonic() + 60
    while (job := http.get(answer.headers["Location"], headers=AUTH).json())["state"] in ("queued", "running"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return dict(job)


def test_the_page_holds_no_data_and_its_policy_fits_its_script(http: Any) -> None:
    answer = http.get("/")
    assert answer.status_code == 200 and "Eiffel" in answer.text and "atlas.csv" not in answer.text
    script = answer.text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Frame-Options"] == "DENY" and answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/inspect/about", None),
        ("POST", "/inspect/look", {"prompt": PROMPT}),
        ("GET", "/inspect/cosines", None),
        ("GET", "/inspect/facts", None),
        ("GET", "/inspect/history", None),
        ("POST", "/inspect/rollback", {"generation": 1}),
        ("GET", "/facts", None),
        ("POST", "/facts", [{"subject": "Rome", "prompt": "{} is", "target": "far"}]),
        ("DELETE", "/facts/tower", None),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": PROMPT}),
    ],
)
@pytest.mark.parametrize(
    ("headers", "status", "told"),
    [
        ({}, 401, "token"),
        ({"Authorization": "Bearer wrong"}, 401, "token"),
        ({**AUTH, "Origin": "http://evil.example"}, 403, "other sites"),
        ({**AUTH, "Origin": "null"}, 403, "other sites"),
        ({**AUTH, "Host": "evil.example:8001"}, 421, "--allowed-host"),
    ],
)
def test_nothing_is_told_or_done_without_the_token_or_for_other_sites(
    http: Any, db: Path, method: str, path: str, body: Any, headers: dict[str, str], status: int, told: str
) -> None:
    answer = http.request(method, path, json=body, headers=headers)
    assert answer.status_code == status and told in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers
    with NeuralDB.open(db) as opened:
        assert opened.generation == 1


def test_about_tells_model_generation_and_gate(http: Any, db: Path) -> None:
    about = http.get("/inspect/about", headers=AUTH).json()
    known = {"name": "facts", "model": "tiny", "generation": 1, "facts": 3, "gamma": 0.45, "guard": "subject"}
    assert known.items() <= about.items() and about["chat"] is False


def test_a_look_follows_changes_and_rollbacks(http: Any) -> None:
    def look() -> dict[str, Any]:
        answer = http.post("/inspect/look", json={"prompt": PROMPT, "max_tokens": 4}, headers=AUTH)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    first = look()
    assert first["generation"] == 1 and first["summary"] == "1 fired (Rome)." and "atlas.csv" in first["html"]
    assert finished(http, http.delete("/facts/tower", headers=AUTH))["generation"] == 2
    second = look()
    assert second["generation"] == 2 and second["summary"].startswith("No fact")
    job = finished(http, http.post("/inspect/rollback", json={"generation": 1}, headers=AUTH))
    assert (job["kind"], job["state"], job["generation"], job["added"]) == ("rollback", "succeeded", 3, 1)
    assert look()["summary"] == first["summary"]
    told = http.get("/inspect/history", headers=AUTH).json()
    assert told["generation"] == 3
    assert [(one["generation"], one["kept"]) for one in told["data"]] == [(3, True), (2, True), (1, True)]


def test_facts_come_in_pages_orders_and_around_an_id(http: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.inspector import app

    monkeypatch.setattr(app, "PAGE", 2)

    def page(**asked: Any) -> tuple[list[str], int, int, int]:
        told = http.get("/inspect/facts", params=asked, headers=AUTH).json()
        return [one["id"] for one in told["data"]], told["page"], told["pages"], told["total"]

    assert page() == (["tower", "paris"], 1, 2, 3)
    assert page(page=2) == (["<b>evil</b>"], 2, 2, 3) == page(page=9)
    assert page(order="newest")[0] == ["<b>evil</b>", "paris"]
    assert page(order="subject") == (["<b>evil</b>", "tower"], 1, 2, 3)
    assert page(order="subject", holding="paris") == (["paris"], 2, 2, 3)
    assert page(holding="nothing")[1] == 1
    assert page(contains="italy") == (["paris"], 1, 1, 1)
    assert page(contains="nowhere") == ([], 1, 1, 0)
    assert len(page(order="weakest")[0]) == 2
    for wrong in ({"order": "longest"}, {"page": 0}, {"light": "blue"}):
        assert http.get("/inspect/facts", params=wrong, headers=AUTH).status_code == 400


def test_facts_show_the_last_test(http: Any, db: Path) -> None:
    answers = [
        {"kind": "own", "prompt": PROMPT, "base": "Paris", "edited": "Rome", "problem": None},
        {"kind": "question", "prompt": [{"role": "user", "content": "Where is it?"}], "base": "", "edited": "Oslo",
         "problem": "not said"},
    ]  # fmt: skip
    tower = {"id": "tower", "prompt": PROMPT, "target": "Rome", "light": "yellow", "answers": answers}
    stale = {"id": "paris", "prompt": "Paris is the capital of", "target": "Spain", "light": "red", "answers": []}
    told = {"database": str(db), "delivery": "auto", "facts": [tower, stale, {"id": "plain", "light": None}]}
    (db.parent / "answers.report.json").write_text(json.dumps(told), encoding="utf-8")
    test = http.get("/inspect/about", headers=AUTH).json()["test"]
    assert (test["file"], test["delivery"], test["green"], test["yellow"], test["red"]) == (
        "answers.report.json", "auto", 0, 1, 1,
    )  # fmt: skip
    found = {one["id"]: one["test"] for one in http.get("/inspect/facts", headers=AUTH).json()["data"]}
    problem = {"asked": "Where is it?", "said": "Oslo", "problem": "not said"}
    assert found["tower"] == {"light": "yellow", "good": 1, "asks": 2, "problems": [problem]}
    assert found["paris"] is None  # it says something else by now
    only = http.get("/inspect/facts", params={"light": "yellow"}, headers=AUTH).json()["data"]
    assert [one["id"] for one in only] == ["tower"]


def test_a_look_says_how_the_facts_reached_the_prompt(http: Any) -> None:
    def look(prompt: str, **asked: Any) -> dict[str, Any]:
        answer = http.post("/inspect/look", json={"prompt": prompt, "max_tokens": 2, **asked}, headers=AUTH)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    stated = look("Who built the Eiffel Tower?")
    assert (
        stated["summary"] == "1 fact stated (Rome)."
        and "The Eiffel Tower is located in the city of Rome." in stated["html"]
    )
    assert "Facts reach this prompt as text" in stated["html"] and "atlas.csv" in stated["html"]
    both = look(PROMPT, delivery="both")
    assert both["summary"].startswith("1 fact stated (Rome).") and "Stated and fired" in both["html"]
    fired = look(PROMPT)
    assert fired["summary"] == "1 fired (Rome)." and "What delivery text would state" in fired["html"]
    missed = look(f"In the page {EVIL} was")  # an own prompt whose residual does not say the target
    assert missed["summary"].startswith("1 fact stated") and "fired" not in missed["summary"]
    held = look("We saw the eiffel tower", delivery="residual")
    assert "in another case" in held["html"] and held["summary"].startswith("No fact fired")
    nothing = look("Nobody is here", delivery="text")
    assert nothing["summary"].startswith("No fact stated") and "The prompt names no subject" in nothing["html"]
    assert http.post("/inspect/look", json={"prompt": "a", "delivery": "post"}, headers=AUTH).status_code == 400


def test_several_databases_each_for_itself(folder: Path, db: Path, tmp_path: Path, loaded: tuple[Any, Any]) -> None:
    facts = [Fact("Lima", "{} is the capital of", "Chile", "lima")]
    build(facts, None, None, tmp_path / "said").close()
    with serving(folder, {"facts": db, "said": tmp_path / "said"}) as http:
        first = http.get("/inspect/about", headers=AUTH).json()
        assert first["database"] == "facts" and first["residuals"] is True
        assert [one["name"] for one in first["databases"]] == ["facts", "said"]
        said = {**AUTH, "X-NeuralDB": "said"}
        other = http.get("/inspect/about", headers=said).json()
        assert (other["database"], other["name"], other["facts"], other["layer"]) == ("said", "said", 1, None)
        assert [one["id"] for one in http.get("/inspect/facts", headers=said).json()["data"]] == ["lima"]
        look = http.post("/inspect/look", json={"prompt": "Lima is in", "max_tokens": 2}, headers=said).json()
        assert look["summary"] == "1 fact stated (Chile)." and "Lima is the capital of Chile." in look["html"]
        assert http.get("/inspect/cosines", headers=said).status_code == 200
        mine = http.post("/inspect/look", json={"prompt": PROMPT, "max_tokens": 2}, headers=AUTH).json()
        assert mine["summary"] == "1 fired (Rome)."
        assert http.get("/inspect/about", headers={**AUTH, "X-NeuralDB": "third"}).status_code == 404


def test_a_fact_is_added_and_the_next_look_shows_it(http: Any) -> None:
    fact = {"subject": "Marie Curie", "prompt": "{} was born in", "target": "Tokyo", "source": "inspector"}
    assert finished(http, http.post("/facts", json=[fact], headers=AUTH))["state"] == "succeeded"
    asked = {"prompt": "Marie Curie was born in", "delivery": "residual"}
    told = http.post("/inspect/look", json=asked, headers=AUTH).json()
    assert told["generation"] == 2 and told["summary"] == "1 fired (Tokyo)."


def test_a_look_comes_between_two_facts_of_a_change_and_sees_nothing_of_it(http: Any) -> None:
    facts = [{"subject": f"Apple {n}", "prompt": "{} was founded by", "target": "Rome"} for n in range(12)]
    accepted = http.post("/facts", json=facts, headers=AUTH)
    while http.get(accepted.headers["Location"], headers=AUTH).json()["done"] == 0:
        time.sleep(0.01)
    told = http.post("/inspect/look", json={"prompt": PROMPT, "max_tokens": 1}, headers=AUTH).json()
    assert http.get(accepted.headers["Location"], headers=AUTH).json()["state"] == "running"
    assert told["generation"] == 1 and told["summary"] == "1 fired (Rome)."
    job = finished(http, accepted)
    assert (job["state"], job["added"], job["generation"]) == ("succeeded", 12, 2)


def test_generations_that_were_compacted_away_are_not_offered(http: Any, db: Path) -> None:
    with NeuralDB.open(db, "rw") as writer:
        writer.remove("paris")
        writer.compact()
    told = http.get("/inspect/history", headers=AUTH).json()["data"]
    assert [one["kept"] for one in told] == [True, False, False]
    job = finished(http, http.post("/inspect/rollback", json={"generation": 1}, headers=AUTH))
    assert job["state"] == "failed" and "compacted away" in job["error"]


@pytest.mark.parametrize("gate", [{}, {"gamma": 0.3}, {"guard": "none"}])
def test_a_database_that_took_the_folders_place_is_shown(
    http: Any, db: Path, tmp_path: Path, loaded: tuple[Any, Any], gate: dict[str, Any]
) -> None:
    def look() -> str:
        asked = {"prompt": PROMPT, "max_tokens": 2}
        return str(http.post("/inspect/look", json=asked, headers=AUTH).json()["summary"])

    assert look() == "1 fired (Rome)."
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Berlin")
    build([fact], *loaded, tmp_path / "new", **{**SAID, **gate}).close()
    db.rename(tmp_path / "away")
    (tmp_path / "new").rename(db)
    assert "Berlin" in look() and "Rome" not in look()
    assert http.get("/inspect/about", headers=AUTH).json()["facts"] == 1
    assert len(http.get("/inspect/history", headers=AUTH).json()["data"]) == 1


def test_one_of_another_model_is_not_shown_and_not_rolled_back(http: Any, db: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    build([Fact("Paris", "{} is the capital of", "Italy")], *tiny("gpt2"), other, steps=2, max_steps=0).close()
    with NeuralDB.open(other, "rw") as opened:
        opened.remove(subject="Paris")
    db.rename(tmp_path / "away")
    other.rename(db)
    for method, path, body in (
        ("GET", "/inspect/about", None), ("GET", "/inspect/history", None), ("GET", "/inspect/cosines", None),
        ("POST", "/inspect/look", {"prompt": PROMPT}), ("POST", "/inspect/rollback", {"generation": 1}),
    ):  # fmt: skip
        answer = http.request(method, path, json=body, headers=AUTH)
        assert answer.status_code == 503 and "replaced" in answer.json()["error"]["message"], path
    with NeuralDB.open(db) as opened:
        assert opened.generation == 2


def test_the_gate_is_measured(http: Any) -> None:
    told = http.get("/inspect/cosines", headers=AUTH).json()
    assert told["generation"] == 1 and "<b>own prompts</b>" in told["html"] and "<b>3</b> of 3 fire" in told["html"]


def test_looks_are_escaped(http: Any) -> None:
    html = http.post("/inspect/look", json={"prompt": f"In the page {EVIL} was"}, headers=AUTH).json()["html"]
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;" in html


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/inspect/look", {"prompt": " "}, "the prompt is empty"),
        ("/inspect/look", {"prompt": "a", "max_tokens": 1000}, "this server allows 64"),
        ("/inspect/look", {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ("/inspect/look", {"prompt": "a", "chat": True}, "no chat template"),
        ("/inspect/rollback", {"generation": 0}, "generation must be at least 1"),
        ("/inspect/rollback", {}, "generation is missing"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(http: Any, path: str, body: Any, told: str) -> None:
    answer = http.post(path, json=body, headers=AUTH)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
