"""Alive and ready: what a server answers while it loads, while it answers, and while it stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.serving import PROMPT, Brake, until
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.model_backend import model_backend
from neuraldb_faiss.serving.server import Server, bind
from neuraldb_faiss.serving.service import Backend
from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens

SETTINGS = ServerSettings(Tokens("secret", {}), Limits(grace=30.0))


@contextmanager
def running(load: Any, ready: Any = lambda _: None) -> Iterator[tuple[Server, httpx2.Client, list[BaseException]]]:
    """A server in a thread; what it ended with."""
    ended: list[BaseException] = []
    with bind("127.0.0.1", 0) as bound:
        server = Server(load, bound, SETTINGS, ready=ready)

        def serve() -> None:
            try:
                server.serve_until_told()
            except ModelError as error:
                ended.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            until(lambda: server.started)
            with httpx2.Client(base_url=f"http://127.0.0.1:{bound.getsockname()[1]}", timeout=60) as http:
                yield server, http, ended
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def test_it_answers_503_until_the_model_is_loaded(folder: Path, paths: dict[str, Path]) -> None:
    go, ready = threading.Event(), threading.Event()

    def load(metrics: Metrics) -> Backend:
        assert go.wait(60)
        return model_backend(lambda: load_model(folder / "tiny"), {"a": paths["a"]}, SETTINGS, metrics)

    with running(load, lambda _: ready.set()) as (_, http, _):
        alive, waiting = http.get("/health"), http.get("/ready")
        assert (alive.status_code, alive.json()) == (200, {"status": "loading"})
        assert (waiting.status_code, waiting.json()) == (503, {"status": "loading"})
        assert "neuraldb_ready 0.0" in http.get("/metrics").text
        for method, path in (("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/facts"), ("GET", "/docs")):
            early = http.request(method, path)
            assert early.status_code == 503 and early.json()["error"]["code"] == "loading"
            assert int(early.headers["Retry-After"]) > 0
        go.set()
        assert ready.wait(60)
        now = http.get("/ready")
        assert (now.status_code, now.json()) == (200, {"status": "ready"})
        assert http.get("/health").json() == {"status": "ok"} and "neuraldb_ready 1.0" in http.get("/metrics").text
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1}
        assert http.post("/v1/completions", json=body).status_code == 200


def test_it_stops_while_it_loads_and_does_not_wait_for_it() -> None:
    go = threading.Event()

    def load(metrics: Metrics) -> Backend:
        go.wait(60)
        raise ModelError("never told")

    with running(load) as (server, http, ended):
        assert http.get("/ready").status_code == 503
        server.should_exit = True
        with pytest.raises(httpx2.HTTPError):
            while True:
                http.get("/ready")
    go.set()
    assert ended == []


def test_what_cannot_be_loaded_ends_it_with_the_reason() -> None:
    def load(metrics: Metrics) -> Backend:
        raise ModelError("there is no such model")

    with running(load) as (server, _, ended):
        until(lambda: server.should_exit)
    assert [str(error) for error in ended] == ["there is no such model"]


def test_it_answers_503_to_new_requests_while_what_runs_is_finished(folder: Path, paths: dict[str, Path]) -> None:
    loaded, ready = load_model(folder / "tiny"), threading.Event()
    load = partial(model_backend, lambda: loaded, {"a": paths["a"]}, SETTINGS)
    answers: list[Any] = []
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    with running(load, lambda _: ready.set()) as (server, http, _):
        assert ready.wait(60)
        brake = Brake(loaded[0])
        try:
            asking = threading.Thread(target=lambda: answers.append(http.post("/v1/completions", json=body)))
            asking.start()
            until(lambda: brake.holds)
            server.should_exit = True
            with httpx2.Client(base_url=http.base_url, timeout=60) as late:  # on a connection of its own
                until(lambda: late.get("/ready").status_code == 503)
                assert late.get("/ready").json() == {"status": "stopping"}
                assert late.get("/health").status_code == 200
                refused = late.post("/v1/completions", json=body)
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"
                assert "Retry-After" in refused.headers
        finally:
            brake.release()
        asking.join(60)
    assert answers[0].status_code == 200 and answers[0].json()["usage"]["completion_tokens"] == 4
