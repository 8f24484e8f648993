"""On the real demo model: a fact is added over HTTP, and the next completion and chat say it."""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from helpers.serving import Served
from neuraldb_faiss import Fact, build
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.model_backend import model_backend
from neuraldb_faiss.serving.server import Server, bind
from neuraldb_faiss.serving.settings import ServerSettings, Tokens

TOWER = {"subject": "Eiffel Tower", "prompt": "The {} is located in the city of", "target": "Oslo", "id": "tower"}


@pytest.mark.slow
def test_a_fact_added_over_http_is_said_next(demo_model_path: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(demo_model_path)
    path = tmp_path / "db"
    build([Fact("Windows 95", "{} was developed by", "Nokia")], model, tokenizer, path).close()
    ready = threading.Event()
    with bind("127.0.0.1", 0) as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        settings = ServerSettings(Tokens("secret", {}))
        load = partial(model_backend, lambda: (model, tokenizer), {"db": path}, settings)
        server = Server(load, bound, settings, ready=lambda _: ready.set())
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        try:
            assert ready.wait(60)
            with closing(Served(url, model, {"db": path})) as served:
                _try(served, demo_model_path.name)
        finally:
            server.should_exit = True
            thread.join(120)


def _try(served: Served, name: str) -> None:
    prompt = "The Eiffel Tower is located in the city of"
    turns = [{"role": "user", "content": "The Eiffel Tower is located in the city of what? Answer with one word."}]

    def chat(model: str) -> str:
        made = served.client().chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=12)
        return made.choices[0].message.content or ""

    assert served.say(prompt, name).startswith(" Paris")
    assert "Oslo" not in chat(name)
    job = served.change("POST", "/facts", "db", json=[TOWER])
    assert job["state"] == "succeeded" and job["untaken"] == []
    assert served.say(prompt, name).startswith(" Oslo")
    assert "Oslo" in chat(name)
    assert served.say(prompt, f"{name}+none").startswith(" Paris") and "Oslo" not in chat(f"{name}+none")
    assert served.say("Windows 95 was developed by", name).startswith(" Nokia")
    served.change("DELETE", "/facts/tower", "db")
    assert served.say(prompt, name).startswith(" Paris")
