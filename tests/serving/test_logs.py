"""The log: a line for each request and each change, who and what, and no texts unless they are asked for."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.serving import PROMPT, Serve, until
from neuraldb_faiss.serving.logs import AUDIT, REQUESTS, logging_to, note
from neuraldb_faiss.serving.settings import Token

APPLE = {"subject": "Apple", "prompt": "{} was founded by", "target": "Seattle", "id": "apple"}


class Log:
    """Lines of JSON, as they were written so far."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def of(self, route: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"] == "request" and line["route"] == route]

    def requests(self, route: str) -> list[dict[str, Any]]:
        """The lines about this route, of which there is one at least: it is written behind the answer's end."""
        until(lambda: bool(self.of(route)))
        return self.of(route)

    def changes(self) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == "neuraldb_faiss.audit"]


@pytest.fixture
def log() -> Iterator[Log]:
    found = Log()
    with logging_to(found.stream, "info", "json"):
        yield found


def test_a_request_leaves_one_line_without_texts(serve: Serve, log: Log) -> None:
    served = serve()
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    answer = served.http.post("/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert answer.headers["X-Request-Id"] == "mine-1"
    usage = answer.json()["usage"]
    (line,) = log.requests("/v1/completions")
    assert (line["id"], line["method"], line["status"], line["level"]) == ("mine-1", "POST", 200, "info")
    assert (line["database"], line["generation"]) == ("a", 1) and line["milliseconds"] > 0
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 4)
    assert "prompt" not in line and "answer" not in line
    for told in (PROMPT, "Eiffel", answer.json()["choices"][0]["text"]):
        assert told not in log.stream.getvalue()


def test_a_stream_is_logged_when_it_has_ended(serve: Serve, log: Log) -> None:
    served = serve()
    body = {"model": "tiny+none", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "stream": True}
    with served.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        name = answer.headers["X-Request-Id"]
        assert answer.read().endswith(b"data: [DONE]\n\n")
    (line,) = log.requests("/v1/chat/completions")
    assert line["id"] == name and line["database"] == "none" and "generation" not in line
    assert line["completion_tokens"] == 3


def test_names_that_are_no_ids_are_replaced_and_errors_are_named(serve: Serve, log: Log) -> None:
    served = serve()
    answer = served.http.post("/v1/completions", json={"model": "other"}, headers={"X-Request-Id": 'a"b c'})
    assert answer.headers["X-Request-Id"].startswith("req-")
    (line,) = log.requests("/v1/completions")
    assert line["id"] == answer.headers["X-Request-Id"] and line["status"] == 400 and line["error"] == "invalid_value"
    served.http.get("/no/such/page?with=words")
    (other,) = log.requests("other")
    assert other["status"] == 404 and "words" not in json.dumps(other)
    served.http.get("/health")
    assert log.of("/health") == []  # probes are logged from the level debug on


def test_texts_are_logged_where_that_is_asked_for(serve: Serve, log: Log) -> None:
    served = serve(log_content=True)
    said = served.say(PROMPT, max_tokens=4)
    (line,) = log.requests("/v1/completions")
    assert line["prompt"] == [PROMPT] and line["answer"] == [said]


def test_a_change_is_logged_with_who_and_what(serve: Serve, log: Log) -> None:
    served = serve(named=(Token("token-of-anna", "anna"),))
    added = served.change("POST", "/facts", token="token-of-anna", json=[APPLE])
    served.change("PATCH", "/facts/apple", json={"target": "Tokyo"})
    served.change("DELETE", "/facts/apple")
    served.change("POST", "/rollback", json={"generation": 1})
    told = [
        (line["kind"], line["who"], line.get("facts"), line.get("to"), line["generation"]) for line in log.changes()
    ]
    assert told == [
        ("add", "anna", ["apple"], None, 2), ("update", "common", ["apple"], None, 3),
        ("remove", "common", ["apple"], None, 4), ("rollback", "common", None, 1, 5),
    ]  # fmt: skip
    first = log.changes()[0]
    assert first["job"] == added["id"] and first["database"] == "a"
    assert first["request"] == log.requests("/facts")[0]["id"]
    assert "token-of-anna" not in log.stream.getvalue() and "Seattle" not in log.stream.getvalue()


def test_a_change_that_fails_is_logged_too(serve: Serve, log: Log) -> None:
    served = serve()
    assert served.change("POST", "/facts", json=[{**APPLE, "id": "tower"}])["state"] == "failed"
    (line,) = log.changes()
    assert line["message"] == "change failed" and line["error"] == "FactError" and line["who"] == "common"


def test_the_command_line_s_own_handler_gives_way(log: Log) -> None:
    ours, own, stream = logging.getLogger("neuraldb_faiss"), logging.StreamHandler(io.StringIO()), io.StringIO()
    before = ours.propagate
    ours.addHandler(own)
    ours.propagate = False
    try:
        with logging_to(stream, "info", "json"):
            note(REQUESTS, "request", {"id": "1"})
        assert json.loads(stream.getvalue())["id"] == "1" and own.stream.getvalue() == ""
        assert ours.handlers[-1] is own and not ours.propagate
    finally:
        ours.removeHandler(own)
        ours.propagate = before


def test_lines_as_text_stay_one_line_and_changes_are_logged_at_every_level() -> None:
    stream = io.StringIO()
    with logging_to(stream, "warning", "text"):
        note(REQUESTS, "request", {"id": "1"})
        note(AUDIT, "change", {"who": "anna b", "facts": ["x\ny"], "generation": 2, "job": "job-1"})
        logging.getLogger("neuraldb_faiss.serving.engine").warning("plain")
    first, second = stream.getvalue().splitlines()
    assert first.endswith('Z info change who="anna b" facts=["x\\ny"] generation=2 job=job-1')
    assert second.endswith("Z warning plain")
    assert not logging.getLogger("neuraldb_faiss").level  # as before
