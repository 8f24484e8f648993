"""Requests of a running server join texts that run, leave when they end, and get what there is when time is up."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from helpers.serving import PROMPT, Alone, Brake, Serve, Served, until
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.serving import engine

APPLE = "Apple was founded by"


class Asking(threading.Thread):
    """A request in a thread of its own. Attributes: told: its answer's text."""

    def __init__(self, served: Served, prompt: str, model: str = "tiny", **more: Any) -> None:
        super().__init__()
        self._ask: Callable[[], str] = lambda: served.say(prompt, model, **more)
        self.told: str | None = None
        self.start()

    def run(self) -> None:
        self.told = self._ask()


def go_until(brake: Brake, done: Callable[[], bool], forwards: int = 300) -> None:
    """Let forwards through, one after the other, until `done()`."""

    def moved(passed: int) -> bool:
        return brake.passed > passed and (brake.holds or done())

    for _ in range(forwards):
        if done():
            return
        passed = brake.passed
        brake.go(1)
        until(partial(moved, passed))
    raise AssertionError("it was never done")


def test_a_short_request_is_answered_while_a_long_one_runs(serve: Serve) -> None:
    served = serve()
    long, short = served.say(PROMPT, max_tokens=40), served.say(APPLE, max_tokens=3)
    brake = Brake(served.model)
    try:
        first = Asking(served, PROMPT, max_tokens=40)
        until(lambda: brake.holds)
        brake.go(3)
        until(lambda: brake.passed == 3 and brake.holds)
        second = Asking(served, APPLE, max_tokens=3)
        until(lambda: served.metric("neuraldb_queue_length") == 1)
        assert served.metric("neuraldb_running_texts") == 1
        go_until(brake, lambda: not second.is_alive(), 8)
        assert first.is_alive() and second.told == short
    finally:
        brake.release()
    first.join(60)
    assert first.told == long
    until(lambda: served.metric("neuraldb_running_texts") == 0)


def test_a_text_keeps_its_generation_and_those_behind_it_get_the_next(serve: Serve, alone: Alone) -> None:
    served = serve("a", "b")
    path, text = served.paths["a"], "I know that Marie Curie was born in"
    other = served.say(PROMPT, "tiny+b", max_tokens=3)
    brake = Brake(served.model)
    try:
        before = Asking(served, text, "tiny+a", max_tokens=30)
        until(lambda: brake.holds)
        brake.go(2)
        until(lambda: brake.passed == 2 and brake.holds)
        with NeuralDB.open(path, "rw") as db:
            db.remove(["curie"])
        after = Asking(served, text, "tiny+a", max_tokens=30)
        until(lambda: served.metric("neuraldb_queue_length") == 1)
        beside = Asking(served, PROMPT, "tiny+b", max_tokens=3)
        go_until(brake, lambda: not beside.is_alive(), 12)
        assert before.is_alive() and after.is_alive() and served.metric("neuraldb_queue_length") == 1
    finally:
        brake.release()
    before.join(60)
    after.join(60)
    assert beside.told == other
    assert before.told == alone(path, text, 1, 30) and after.told == alone(path, text, 2, 30)
    assert before.told != after.told


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("joins", [True, False])
def test_what_there_is_when_time_is_up_is_the_answer(
    serve: Serve, alone: Alone, monkeypatch: pytest.MonkeyPatch, stream: bool, joins: bool
) -> None:
    if not joins:
        monkeypatch.setattr(engine, "can_join", lambda _: False)
    served = serve(timeout=3)
    whole = alone(served.paths["a"], PROMPT, tokens=40)
    brake = Brake(served.model)
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 400, "stream": stream}
    try:
        brake.go(5)
        if stream:
            options = {"stream_options": {"include_usage": True}}
            with served.http.stream("POST", "/v1/completions", json={**body, **options}) as answer:
                events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
            assert events.pop() == "[DONE]"
            chunks = [json.loads(event) for event in events]
            text = "".join(one["choices"][0]["text"] for one in chunks if one["choices"])
            reasons = [one["choices"][0]["finish_reason"] for one in chunks if one["choices"]]
            assert reasons[-1] == "length" and not any(reasons[:-1])
            used = chunks[-1]["usage"]
        else:
            answer = served.http.post("/v1/completions", json=body)
            assert answer.status_code == 200
            (choice,), used = answer.json()["choices"], answer.json()["usage"]
            text = choice["text"]
            assert choice["finish_reason"] == "length"
        assert text and whole.startswith(text) and 0 < used["completion_tokens"] <= 5
    finally:
        brake.release()


def test_an_explanation_is_whole_or_none(serve: Serve) -> None:
    served = serve(timeout=2)
    brake = Brake(served.model)
    try:
        brake.go(3)
        answer = served.http.post("/explain", json={"prompt": PROMPT, "max_tokens": 50})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    finally:
        brake.release()


def test_a_change_and_texts_take_turns(serve: Serve, alone: Alone) -> None:
    """A text that runs when a change begins goes on while it is solved, and ends as it began."""
    served = serve()
    path = served.paths["a"]
    several = [{"subject": f"Apple {n}", "prompt": "{} was founded by", "target": "Madrid"} for n in range(3)]
    brake = Brake(served.model)
    try:
        running = Asking(served, PROMPT, max_tokens=200)
        until(lambda: brake.holds)
        brake.go(2)
        until(lambda: brake.passed == 2 and brake.holds)
        headers = {"Authorization": "Bearer secret"}
        job = served.http.post("/facts", json=several, headers=headers).headers["Location"]
        brake.go(1)
        until(lambda: served.http.get(job, headers=headers).json()["state"] == "running")
    finally:
        brake.release()
    running.join(120)
    until(lambda: served.http.get(job, headers=headers).json()["state"] == "succeeded")
    assert running.told == alone(path, PROMPT, 1, 200)
    assert served.say("Apple 1 was founded by") == alone(path, "Apple 1 was founded by", 2)
