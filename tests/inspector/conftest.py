"""A tiny model, and a database of it with facts that would break a careless page."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny import save_tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.inspector.views import Looker
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens

NAME = "db"  # the server's name of the database
PROMPT = "The Eiffel Tower is located in the city of"
EVIL = "<script>window.evil = 1</script>"
FACTS: list[dict[str, Any]] = [
    {
        "subject": "Eiffel Tower", "prompt": "The {} is located in the city of", "target": "Rome", "id": "tower",
        "target_true": "Paris", "source": "atlas.csv",
        "metadata": {
            "paraphrase_prompts": ["Where they built the Eiffel Tower, people speak", "It is in Paris"],
            "neighborhood_prompts": ["Marie Curie was born in the city of"],
        },
    },
    {"subject": "Paris", "prompt": "{} is the capital of", "target": "Italy", "id": "paris"},
    {
        "subject": EVIL, "prompt": "In the page {} was", "target": "\"><img src=x onerror='window.evil=2'>",
        "id": "<b>evil</b>", "source": "</style><script>window.evil=3</script>",
    },
]  # fmt: skip
# Nothing holds a residual back, so that it says a target even in a random model.
SAID: dict[str, Any] = {
    "layer": 0, "steps": 60, "max_steps": 0, "lr": 1.0, "clamp": 100.0, "weight_decay": 0.0, "kl_factor": 0.0,
}  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder "tiny" and a database "facts"; the residual of "tower" says its target, that of "<b>evil</b>" does
    not."""
    root = tmp_path_factory.mktemp("inspected")
    save_tiny(root / "tiny")
    model, tokenizer = load_model(root / "tiny")
    facts = [Fact.from_dict(one) for one in FACTS]
    with build(facts, model, tokenizer, root / "facts", **SAID) as made:
        (tower,) = made.facts(ids=["tower"])
        assert tower.took, "the tower's residual is to say its target: elsewhere it would be stated"
    return root


@pytest.fixture
def db(folder: Path, tmp_path: Path) -> Path:
    """This test's own copy of the database."""
    return Path(shutil.copytree(folder / "facts", tmp_path / "facts"))


@pytest.fixture(scope="session")
def loaded(folder: Path) -> tuple[Any, Any]:
    return load_model(folder / "tiny")


@pytest.fixture
def looker(db: Path, loaded: tuple[Any, Any]) -> Iterator[Looker]:
    with NeuralDB.open(db) as opened:
        yield Looker(opened, *loaded)


@pytest.fixture
def inspected(folder: Path, db: Path) -> Iterator[str]:
    """The address of a running inspector of `db`, its token in it."""
    pytest.importorskip("fastapi")
    with running(folder, db) as address:
        yield address


@contextmanager
def running(folder: Path, *databases: Path) -> Iterator[str]:
    from neuraldb_faiss.inspector.app import Inspected, routes
    from neuraldb_faiss.serving.model_backend import model_backend
    from neuraldb_faiss.serving.server import Server, bind

    ready = threading.Event()
    named = {NAME: databases[0]} if len(databases) == 1 else {path.name: path for path in databases}
    page = Inspected(named)
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        settings = ServerSettings(Tokens(None, dict.fromkeys(named, "secret")), Limits(grace=5.0))
        load = partial(model_backend, lambda: load_model(folder / "tiny"), named, settings)
        server = Server(load, bound, settings, ready=lambda _: ready.set(), routers=[routes(page)])
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{port}/#token=secret"
        finally:
            server.should_exit = True
            thread.join(60)
            page.close()
            assert not thread.is_alive()
