"""Facts changed in place, generations listed and gone back to."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.commands import digest
from helpers.serving import PROMPT, Alone, Serve

AUTH = {"Authorization": "Bearer secret"}


def test_a_fact_is_changed_in_place(serve: Serve, alone: Alone) -> None:
    served = serve()
    job = served.change("PATCH", "/facts/tower", json={"target": "Berlin"})
    assert (job["kind"], job["state"], job["generation"], job["updated"]) == ("update", "succeeded", 2, 1)
    assert served.say(PROMPT) == alone(served.paths["a"], PROMPT, 2)
    found = served.http.get("/facts", params={"subject": "Eiffel Tower"}).json()["data"]
    assert {one["id"]: one["target"] for one in found} == {"tower": "Berlin", "builder": "Steve"}
    same = served.change("PATCH", "/facts/tower", json={"target": "Berlin"})
    assert (same["state"], same["generation"], same["updated"]) == ("succeeded", 2, 0)


def test_a_statement_is_set_kept_and_dropped_with_its_target(serve: Serve) -> None:
    served = serve()

    def fact() -> Any:
        (found,) = [one for one in served.http.get("/facts").json()["data"] if one["id"] == "tower"]
        return found

    served.change("PATCH", "/facts/tower", json={"statement": "Go to Rome to see it.", "aliases": ["la tour"]})
    assert fact()["metadata"]["statement"] == "Go to Rome to see it." and fact()["metadata"]["aliases"] == ["la tour"]
    served.change("PATCH", "/facts/tower", json={"target": "Berlin"})  # else it would be stated that it is in Rome
    assert "statement" not in fact()["metadata"] and fact()["metadata"]["aliases"] == ["la tour"]
    served.change("PATCH", "/facts/tower", json={"statement": "{target} has the {}."})
    served.change("PATCH", "/facts/tower", json={"target": "Madrid", "aliases": None})
    assert fact()["metadata"] == {"statement": "{target} has the {}."} and fact()["target"] == "Madrid"


def test_another_subject_or_prompt_makes_another_fact_of_the_same_id(serve: Serve, alone: Alone) -> None:
    served = serve()
    job = served.change("PATCH", "/facts/curie", json={"subject": "Ada Lovelace", "prompt": "{} was born in"})
    assert (job["state"], job["added"], job["removed"]) == ("succeeded", 1, 1)
    found = served.http.get("/facts").json()["data"]
    assert len(found) == 4 and [one["subject"] for one in found if one["id"] == "curie"] == ["Ada Lovelace"]
    text = "I know that Marie Curie was born in"
    assert served.say(text) == alone(None, text)
    taken = served.change("PATCH", "/facts/paris", json={"subject": "Eiffel Tower", "prompt": found[0]["prompt"]})
    assert taken["state"] == "failed" and "another fact" in taken["error"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "nothing is to change"),
        ({"target": ""}, "the target is empty"),
        ({"target": None}, "the target is null"),
        ({"targett": "x"}, "no field that this server knows"),
        ({"prompt": "no subject"}, "is not in the prompt"),
        ({"aliases": ["a", 1]}, "aliases[1] must be a text"),
        ({"target": "word " * 300}, "tokens"),
        ([], "must be an object"),
    ],
)
def test_a_bad_change_is_refused(serve: Serve, body: Any, told: str) -> None:
    served = serve(prompt_tokens=100)
    before = digest(served.paths["a"])
    answer = served.http.patch("/facts/tower", json=body, headers=AUTH)
    assert answer.status_code == 400 and told in answer.json()["error"]["message"]
    assert digest(served.paths["a"]) == before


def test_who_may_change_and_go_back(serve: Serve) -> None:
    served = serve("a", "b", own={"b": "token-b"})
    for method, path, body in (("PATCH", "/facts/tower", {"target": "x"}), ("POST", "/rollback", {"generation": 1})):
        assert served.http.request(method, path, json=body, headers={"X-NeuralDB": "a"}).status_code == 401
        assert served.http.request(method, path, json=body, headers={**AUTH, "X-NeuralDB": "b"}).status_code == 401
    assert served.http.get("/history", headers={"X-NeuralDB": "a"}).status_code == 200
    assert served.http.get("/history", headers={**AUTH, "X-NeuralDB": "b"}).status_code == 401
    missing = served.http.patch("/facts/nothing", json={"target": "x"}, headers={**AUTH, "X-NeuralDB": "a"})
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "no_fact"


def test_generations_are_listed_and_gone_back_to(serve: Serve, alone: Alone) -> None:
    served = serve()
    before = served.say(PROMPT)
    served.change("DELETE", "/facts/tower")
    served.change("DELETE", "/facts/builder")
    page = served.http.get("/history", params={"limit": 2}).json()
    assert (page["database"], page["generation"], page["next"]) == ("a", 3, 2)
    assert [(one["generation"], one["removed"], one["kept"]) for one in page["data"]] == [(3, 1, True), (2, 1, True)]
    rest = served.http.get("/history", params={"before": page["next"]}).json()
    assert [one["generation"] for one in rest["data"]] == [1] and rest["next"] is None
    assert served.say(PROMPT) == alone(None, PROMPT) != before
    job = served.change("POST", "/rollback", json={"generation": 1})
    assert (job["kind"], job["state"], job["generation"], job["added"]) == ("rollback", "succeeded", 4, 2)
    assert served.say(PROMPT) == before
    assert len(served.http.get("/facts").json()["data"]) == 4


@pytest.mark.parametrize(
    ("body", "status"), [({"generation": 1}, 400), ({"generation": 9}, 404), ({"generation": "1"}, 400), ({}, 400)]
)
def test_there_is_no_way_back_to_nowhere(serve: Serve, body: Any, status: int) -> None:
    answer = serve().http.post("/rollback", json=body, headers=AUTH)
    assert answer.status_code == status and "generation" in answer.json()["error"]["message"]
