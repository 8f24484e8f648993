"""What is too much is refused, what nobody waits for is dropped, and the server stays well."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import openai
import pytest

from helpers.serving import PROMPT, Brake, Serve, Served, until

AUTH = {"Authorization": "Bearer secret"}


def in_thread(served: Served, **more: object) -> tuple[threading.Thread, list[object]]:
    told: list[object] = []

    def ask() -> None:
        try:
            told.append(served.say(PROMPT, **more))
        except openai.APIStatusError as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, told


def test_a_large_body_is_refused(serve: Serve) -> None:
    served = serve(body=2000)
    body = json.dumps({"model": "tiny", "prompt": "x" * 3000})
    answer = served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"

    def pieces() -> Iterator[bytes]:  # no Content-Length
        for at in range(0, len(body), 100):
            yield body[at : at + 100].encode()

    answer = served.http.post("/v1/completions", content=pieces(), headers={"Content-Type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert served.say(PROMPT)


def test_a_full_queue_refuses_and_loses_nobody(serve: Serve) -> None:
    served = serve(queue=2, batch=1)
    expected = served.say(PROMPT)
    brake = Brake(served.model)
    try:
        waiting = [in_thread(served)]
        until(lambda: brake.holds)
        for _ in range(2):
            waiting.append(in_thread(served))
            until(lambda: served.metric("neuraldb_queue_length") == len(waiting) - 1)
        with pytest.raises(openai.RateLimitError) as refused:
            served.say(PROMPT)
        assert refused.value.response.headers["Retry-After"] == "1"
    finally:
        brake.release()
    for thread, told in waiting:
        thread.join(30)
        assert told == [expected]


def test_changes_that_wait_are_limited_for_each_database(serve: Serve) -> None:
    served = serve("a", "b", jobs=1)
    brake = Brake(served.model)
    try:

        def post(database: str, name: str) -> int:
            fact = [{"subject": name, "prompt": "{} is in", "target": "Rome"}]
            return served.http.post("/facts", json=fact, headers={**AUTH, "X-NeuralDB": database}).status_code

        assert post("a", "One") == 202
        until(lambda: brake.holds)  # it runs
        assert [post("a", "Two"), post("a", "Three"), post("b", "Four")] == [202, 429, 202]
    finally:
        brake.release()


def test_a_request_that_is_not_begun_in_time_is_told_so(serve: Serve) -> None:
    served = serve(timeout=2)
    brake = Brake(served.model)
    try:
        with pytest.raises(openai.InternalServerError) as failed:
            served.say(PROMPT)
        assert failed.value.status_code == 504 and failed.value.code == "timeout"
        body = {"model": "tiny", "prompt": PROMPT, "stream": True}
        answer = served.http.post("/v1/completions", json=body)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    finally:
        brake.release()
    assert served.say(PROMPT)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_is_not_answered_any_more(serve: Serve, stream: bool) -> None:
    served = serve()
    brake = Brake(served.model)
    body = json.dumps({"model": "tiny", "prompt": PROMPT, "stream": stream, "max_tokens": 400, "temperature": 0})
    try:
        with socket.create_connection(served.address) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            until(lambda: brake.holds)
            brake.go(3)
            until(lambda: brake.passed >= 3)
        made = 'neuraldb_generated_tokens_total{database="a"}'
        for _ in range(200):
            brake.go(1)
            time.sleep(0.02)
            if served.metric(made):
                break
        assert 0 < served.metric(made) < 200
    finally:
        brake.release()


def test_a_request_that_is_cancelled_while_it_waits_never_runs(serve: Serve) -> None:
    served = serve(batch=1)
    brake = Brake(served.model)
    try:
        thread, told = in_thread(served, max_tokens=2)
        until(lambda: brake.holds)
        with pytest.raises(httpx2.ReadTimeout):
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 300}
            served.http.post("/v1/completions", json=body, timeout=1)
        gone = 'neuraldb_requests_total{endpoint="/v1/completions",status="499"}'
        until(lambda: served.metric(gone) == 1)
    finally:
        brake.release()
    thread.join(30)
    served.say(PROMPT, max_tokens=1)
    assert len(told) == 1 and served.metric('neuraldb_generated_tokens_total{database="a"}') == 3


def test_a_body_that_does_not_come_is_not_waited_for(serve: Serve) -> None:
    served = serve(timeout=0.3)
    with socket.create_connection(served.address, timeout=20) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        told = b""
        while part := raw.recv(4096):  # and the connection is closed
            told += part
    assert told.startswith(b"HTTP/1.1 408") and b'"error"' in told


def test_a_failing_model_is_an_error_and_not_the_end(serve: Serve) -> None:
    served = serve()

    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    hook = served.model.register_forward_pre_hook(fail)
    with pytest.raises(openai.InternalServerError) as failed:
        served.say(PROMPT)
    assert failed.value.status_code == 500 and "secret detail" not in str(failed.value)
    hook.remove()
    assert served.say(PROMPT)


def test_metrics_count(serve: Serve) -> None:
    served = serve()
    served.say(PROMPT, max_tokens=3)
    served.say(PROMPT, "tiny+none", max_tokens=2)
    answer = served.http.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert served.metric('neuraldb_requests_total{endpoint="/v1/completions",status="200"}') == 2
    assert served.metric('neuraldb_request_seconds_count{endpoint="/v1/completions"}') == 2
    assert served.metric('neuraldb_prompt_tokens_total{database="a"}') == 13
    assert served.metric('neuraldb_generated_tokens_total{database="a"}') == 3
    assert served.metric('neuraldb_generated_tokens_total{database="none"}') == 2
    assert served.metric('neuraldb_fires_total{database="a"}') == 1
    assert served.metric('neuraldb_facts{database="a"}') == 4
    served.http.get("/facts/../../etc/passwd")
    served.http.get("/whatever-a-client-makes-up")
    assert "made" not in answer.text and "whatever" not in served.http.get("/metrics").text
