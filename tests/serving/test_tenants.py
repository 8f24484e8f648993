"""Several databases over one model: each row of a batch sees its own, and nobody another's."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import openai
import pytest

from helpers.commands import FACTS
from helpers.serving import PROMPT, Alone, Brake, Serve, Served, until

OWN = {"a": "token-a", "b": "token-b"}


def bearer(token: str, database: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **({"X-NeuralDB": database} if database else {})}


def test_one_batch_answers_each_row_from_its_own_database(serve: Serve, alone: Alone) -> None:
    served = serve("a", "b")
    texts = [PROMPT, "I know that Marie Curie was born in", "Paris is the capital of", "Berlin is in"]
    asked = [(model, text) for text in texts for model in ("tiny", "tiny+a", "tiny+b")] * 2
    brake = Brake(served.model)
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        model, text = asked[number]
        answers[number] = served.say(text, model)

    try:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
        threads[0].start()
        until(lambda: brake.holds)  # a batch of its own; all others wait, and how many that is can be known
        for thread in threads[1:]:
            thread.start()
        until(lambda: served.metric("neuraldb_queue_length") == len(asked) - 1)
    finally:
        brake.release()
    for thread in threads:
        thread.join(60)
    expected = {
        (model, text): alone(served.paths.get(model.removeprefix("tiny+")), text)
        for model, text in dict.fromkeys(asked)
    }
    assert [answers[number] for number in range(len(asked))] == [expected[one] for one in asked]
    assert len({expected[model, PROMPT] for model in ("tiny", "tiny+a", "tiny+b")}) == 3
    assert brake.passed < 5 * 8  # they did share batches: 24 answers of 8 tokens
    for name in ("a", "b"):
        assert served.metric(f'neuraldb_fires_total{{database="{name}"}}') >= 6


def test_a_header_or_the_model_names_the_database(serve: Serve) -> None:
    served = serve("a", "b")
    client = served.client()

    def said(model: str, header: str | None = None) -> str:
        headers = {} if header is None else {"X-NeuralDB": header}
        made = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=8, extra_headers=headers)
        return made.choices[0].text

    assert said("tiny", "b") == said("tiny+b") == said("tiny+b", "b") != said("tiny+a")
    assert said("tiny") == said("tiny", "none") == said("tiny+none")  # several databases: the model alone
    with pytest.raises(openai.BadRequestError, match="names"):
        said("tiny+a", "b")
    with pytest.raises(openai.NotFoundError):
        said("tiny", "c")
    assert served.http.get("/facts").json()["error"]["code"] == "no_database"


def test_a_default_database_is_meant_where_none_is_named(serve: Serve, paths: dict[str, Path]) -> None:
    served = serve("a", "b", default="b", own={"b": "token-b"})
    with pytest.raises(openai.AuthenticationError):
        served.say(PROMPT)  # and not the model alone
    assert (
        served.say(PROMPT, token="token-b") == served.say(PROMPT, "tiny+b", "token-b") != served.say(PROMPT, "tiny+a")
    )
    listed = served.http.get("/facts", headers=bearer("token-b")).json()
    assert listed["database"] == "b" and listed["data"][0]["target"] == "Berlin"
    alone = serve("a", default="none")
    assert alone.say(PROMPT) == alone.say(PROMPT, "tiny+none") != alone.say(PROMPT, "tiny+a")
    assert alone.http.get("/facts").json()["error"]["code"] == "no_database"


def test_nobody_gets_at_anothers_facts(serve: Serve) -> None:
    served = serve("a", "b", common=None, own=OWN)
    http = served.http
    theirs = [f'"{fact}"' for fact in ("Berlin", "Microsoft", "Madrid", "Japan")]  # b's targets

    def leaks(text: str) -> bool:
        return any(one in text for one in theirs)

    assert leaks(http.get("/facts", headers=bearer("token-b", "b")).text)  # the test can see a leak
    for token in ("token-a", "any", "token-b "[:-2]):
        for method, path, body in (
            ("GET", "/facts", None),
            ("GET", "/facts?contains=Berlin", None),
            ("POST", "/facts", [FACTS[0]]),
            ("DELETE", "/facts/tower", None),
            ("POST", "/explain", {"prompt": PROMPT}),
        ):
            answer = http.request(method, path, headers=bearer(token, "b"), json=body)
            assert answer.status_code == 401 and not leaks(answer.text)
        for path, prompt in (
            ("/v1/completions", {"prompt": PROMPT}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
        ):
            for model, header in (("tiny+b", None), ("tiny", "b")):
                answer = http.post(path, headers=bearer(token, header), json={"model": model, **prompt})
                assert answer.status_code == 401
    # one's own token shows one's own, whatever is asked for
    mine = http.get("/facts", headers=bearer("token-a", "a"), params={"contains": "e"}).text
    explained = http.post("/explain", headers=bearer("token-a", "a"), json={"prompt": PROMPT, "max_tokens": 8}).text
    assert "Rome" in mine and "Rome" in explained and not leaks(mine + explained)
    assert http.delete("/facts/nothing-of-b", headers=bearer("token-a", "a")).status_code == 404
    assert http.get("/v1/models", headers=bearer("token-a")).text.count("tiny+b") == 0
    assert not leaks(http.get("/metrics").text)


def test_a_change_of_one_leaves_the_other_alone_and_its_job_is_private(serve: Serve, alone: Alone) -> None:
    served = serve("a", "b", common=None, own=OWN)
    before = served.say(PROMPT, "tiny+b", "token-b")
    job = served.change("POST", "/facts", "a", "token-a", json=[{**FACTS[0], "target": "Seattle"}])
    assert job["state"] == "succeeded"
    assert served.http.get(f"/jobs/{job['id']}", headers=bearer("token-b")).status_code == 401
    assert served.say(PROMPT, "tiny+b", "token-b") == before == alone(served.paths["b"], PROMPT, 1)
    assert served.say(PROMPT, "tiny+a", "token-a") == alone(served.paths["a"], PROMPT, 2)
    assert served.metric('neuraldb_generation{database="b"}') == 1


def test_a_common_token_does_not_open_a_database_with_its_own(serve: Serve) -> None:
    served = serve("a", "b", common="common", own={"b": "token-b"})
    one = [{"subject": "Apple", "prompt": "{} is", "target": "Rome"}]
    assert served.http.get("/facts", headers={"X-NeuralDB": "a"}).status_code == 200
    assert served.http.post("/facts", json=one, headers=bearer("common", "b")).status_code == 401
    assert served.http.post("/facts", json=one, headers=bearer("token-b", "a")).status_code == 401
    assert served.change("POST", "/facts", "a", "common", json=one)["state"] == "succeeded"
    assert served.change("POST", "/facts", "b", "token-b", json=one)["state"] == "succeeded"


def test_a_broken_database_takes_nobody_else_down(serve: Serve) -> None:
    served = serve("a", "b")
    other = served.say(PROMPT, "tiny+a")
    _spoil(served)
    with pytest.raises(openai.InternalServerError) as failed:
        served.say(PROMPT, "tiny+b")
    assert failed.value.status_code == 503
    assert served.http.get("/facts", headers={"X-NeuralDB": "b"}).status_code == 503
    assert served.say(PROMPT, "tiny+a") == other
    assert served.http.get("/health").status_code == 200


def _spoil(served: Served) -> None:
    catalog = served.paths["b"] / "catalog.sqlite"
    catalog.write_bytes(json.dumps("no catalog").encode() * 4096)
