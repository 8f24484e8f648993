"""A real server of a tiny model on loopback, and ways to talk to it and to hold it up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
from openai import OpenAI

from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.model_backend import model_backend
from neuraldb_faiss.serving.server import Server, bind
from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens

PROMPT = "The Eiffel Tower is located in the city of"
_UNDONE = ("queued", "running")
Serve = Callable[..., "Served"]
Alone = Callable[..., str]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `true()`. Raises AssertionError where it is not in `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


class Served:
    """A running server, and how to talk to it."""

    def __init__(self, url: str, model: Any, paths: dict[str, Path]) -> None:
        self.url = url
        self.model = model  # the very one that serves
        self.paths = paths
        self.http = httpx2.Client(base_url=url, timeout=60)
        self._clients: list[OpenAI] = []

    def close(self) -> None:
        """Close the connections of all its clients."""
        for client in (self.http, *self._clients):
            client.close()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def client(self, token: str = "any") -> OpenAI:
        client = OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=60)
        self._clients.append(client)
        return client

    def say(self, prompt: str, model: str = "tiny", token: str = "any", **more: Any) -> str:
        asked = {"temperature": 0, "max_tokens": 8, **more}
        return self.client(token).completions.create(model=model, prompt=prompt, **asked).choices[0].text

    def change(self, method: str, path: str, database: str = "a", token: str = "secret", **more: Any) -> dict[str, Any]:
        """Make a change and wait for its end, two minutes at most; the job."""
        headers = {"Authorization": f"Bearer {token}", "X-NeuralDB": database}
        answer = self.http.request(method, path, headers=headers, **more)
        assert answer.status_code == 202, answer.text
        end = time.monotonic() + 120
        while (job := self.http.get(answer.headers["Location"], headers=headers).json())["state"] in _UNDONE:
            assert time.monotonic() < end, f"still {job['state']}"
            time.sleep(0.02)
        return dict(job)

    def metric(self, line: str) -> float:
        text = self.http.get("/metrics").text
        found = [one.rsplit(" ", 1)[1] for one in text.splitlines() if one.startswith(f"{line} ")]
        return float(found[0]) if found else 0.0


@contextmanager
def serving(
    folder: Path, paths: dict[str, Path], tokens: Tokens, limits: Limits, delivery: str | None = "residual",
    **more: Any,
) -> Iterator[Served]:  # fmt: skip
    """more: of `ServerSettings`."""
    loaded = load_model(folder / "tiny")
    settings = ServerSettings(tokens, limits, delivery=delivery, **more)
    ready = threading.Event()
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        load = partial(model_backend, lambda: loaded, paths, settings)
        server = Server(load, bound, settings, ready=lambda _: ready.set())
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        try:
            assert ready.wait(30)
            with closing(Served(f"http://127.0.0.1:{port}", loaded[0], paths)) as served:
                yield served
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


class Brake:
    """Holds a model before each forward: `go(n)` lets n of them through, `release()` all."""

    def __init__(self, model: Any) -> None:
        self.passed = 0
        self.holds = False
        self._permits = threading.Semaphore(0)
        self._free = False
        self._hook = model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: Any) -> None:
        if not self._free:
            self.holds = True
            assert self._permits.acquire(timeout=120)
            self.holds = False
        self.passed += 1

    def go(self, forwards: int) -> None:
        self._permits.release(forwards)

    def release(self) -> None:
        self._free = True
        self._permits.release(1)
        self._hook.remove()
