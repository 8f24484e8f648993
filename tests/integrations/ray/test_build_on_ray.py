"""Real workers with a tiny model build the database that one process builds, killed or interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.commands import write
from helpers.pieces import set_piece
from helpers.tiny import save_tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.edits import pipeline
from neuraldb_faiss.errors import BuildError, StoreError
from neuraldb_faiss.integrations import ray
from neuraldb_faiss.integrations.ray import Workers, build_on_ray
from neuraldb_faiss.models import load_model
from neuraldb_faiss.store import Store, verify

pytestmark = pytest.mark.ray
PROMPTS = ("{} is the capital of", "I know that {} was founded by")
TARGETS = ("Italy", "Rome", "Steve", "Tokyo")
# Two facts for some of the subjects, of which the prompts differ to the left of the subject for some.
RECORDS = [
    {"subject": f"City {n % 15}", "prompt": PROMPTS[(n // 15 + n) % 2 if n < 20 else 0], "target": TARGETS[n % 4]}
    for n in range(15)
] + [{"subject": f"City {n}", "prompt": "{} is the seat of", "target": TARGETS[n % 4]} for n in range(7)]
FACTS = [Fact(**record, source="facts.jsonl") for record in RECORDS]  # as they are read from that file
PIECE, STEPS = 2, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def single(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The database that one process builds."""
    set_piece(monkeypatch, PIECE)
    build(FACTS, *load_model(model, device="cpu"), tmp_path / "single", steps=STEPS).close()
    return tmp_path / "single"


def assert_equal(path: Path, single: Path) -> None:
    """The catalog's rows and the entries exactly, keys and residuals up to rounding."""
    one, other = Store(single), Store(path)
    assert verify(other, deep=True) == []

    def rows(store: Store, table: str, **but: Any) -> list[dict[str, Any]]:
        # The rows as SQLite has them: the catalog's own reads check values by their columns.
        found = store.catalog._connection.execute(f"SELECT * FROM {table}").fetchall()
        return [{**dict(row), **but} for row in found]

    measured: dict[str, Any] = {"time": "", "loss": 0, "nll": 0, "probability": 0}  # numbers of another process
    assert rows(other, "facts", **measured) == rows(one, "facts", **measured)
    unlike: dict[str, Any] = {"time": "", "digest": "", "command": ""}
    assert rows(other, "generations", **unlike) == rows(one, "generations", **unlike)
    assert rows(other, "segments", files="") == rows(one, "segments", files="")
    for table in ("counters", "staging", "entry_states", "settings"):
        assert rows(other, table) == rows(one, table)
    for ours, theirs in zip(other.snapshot().segments, one.snapshot().segments, strict=True):
        for name in ("entries", "key_rows", "key_tokens"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        every = np.arange(len(ours.entries))
        assert cosines(ours.keys.astype(np.float32), theirs.keys.astype(np.float32)).min() >= 0.999
        assert cosines(ours.residuals(every), theirs.residuals(every)).min() >= 0.999
    one.close()
    other.close()


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_one_of_two_workers_killed_costs_its_piece(
    cluster: Any, model: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()

    class Watched(ray.Worker):
        """Says what it does in files; nobody solves before both have the model, and then the third one."""

        def load(self, *how: Any) -> str:
            told = super().load(*how)
            (seen / f"loaded-{os.getpid()}").touch()
            return told

        def solve(self, *call: Any) -> Any:
            busy = seen / f"busy-{os.getpid()}"
            busy.touch()
            time.sleep(0.3)
            while len(list(seen.glob("loaded-*"))) < (3 if (seen / "killed").exists() else 2):
                time.sleep(0.05)
            solved = super().solve(*call)
            busy.unlink()
            return solved

    given: list[int] = []
    give = Workers._give

    def note(self: Workers, worker: Any, number: int, method: str, call: tuple[Any, ...]) -> None:
        if method == "solve":
            given.append(number)
        give(self, worker, number, method, call)

    killed: list[int] = []

    def kill_one(progress: Any) -> None:
        while progress.done and not killed:  # in the middle of a piece: another one was given out before this report
            for path in seen.glob("busy-*"):
                killed.append(int(path.name.removeprefix("busy-")))
                (seen / "killed").touch()
                os.kill(killed[0], signal.SIGKILL)
                break

    monkeypatch.setattr(ray, "Worker", Watched)
    monkeypatch.setattr(Workers, "_give", note)
    db = build_on_ray(
        FACTS, model, tmp_path / "db", address="local", workers=2, device="cpu", report=kill_one, steps=STEPS
    )
    assert len(db) == len(FACTS) > db.info()["entries"]
    db.close()
    pieces = set(given)
    assert len(pieces) >= 8 and len(given) == len(pieces) + 1  # one piece was solved anew, no other
    loaded = {int(path.name.removeprefix("loaded-")) for path in seen.glob("loaded-*")}
    assert len(loaded) == 3 and killed[0] in loaded and os.getpid() not in loaded
    assert_equal(tmp_path / "db", single)


def test_interrupted_it_resumes_on_ray_and_in_one_process(
    cluster: Any, model: Path, single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[int] = []  # given out by each call on Ray
    run = Workers.run

    def interrupted(self: Workers, method: str, calls: Any, doing: Any) -> Iterator[Any]:
        """As if somebody pressed Ctrl-C after three pieces, and after one more in the next call."""
        done = 0
        if method == "solve":
            pieces.append(len(calls))
        for answer in run(self, method, calls, doing):
            yield answer
            done += 1
            if method == "solve" and done == (3, 1)[len(pieces) - 1]:
                raise KeyboardInterrupt

    path = tmp_path / "db"
    how: dict[str, Any] = {"address": "local", "workers": 1, "device": "cpu", "steps": STEPS}
    facts = write(tmp_path / "facts.jsonl", RECORDS)
    command = [str(word) for word in ("build", facts, "--out", path, "--model", model, "--steps", STEPS, "--json")]
    with monkeypatch.context() as patch:
        patch.setattr(Workers, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_on_ray(FACTS, model, path, **how)
        with pytest.raises(StoreError, match="unfinished build"):
            NeuralDB.open(path)
        done = CliRunner().invoke(cli, [*command, "--ray", "local", "--workers", "1", "--device", "cpu"])
        assert done.exit_code == 130 and "Run the command again to resume" in done.stderr
    solve, here = pipeline.solve_piece, []
    monkeypatch.setattr(pipeline, "solve_piece", lambda *a: here.append(1) or solve(*a))
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["facts"] == len(FACTS)
    assert pieces == [pieces[0], pieces[0] - 3] and len(here) == pieces[0] - 4 > 0  # nothing was solved twice
    assert_equal(path, single)


def test_the_command_builds_on_ray(cluster: Any, model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", RECORDS)
    options = ("--model", model, "--residual", "none", "--device", "cpu", "--ray", "local", "--workers", 1)
    done = CliRunner().invoke(cli, [str(word) for word in ("build", facts, "--out", tmp_path / "db", *options)])
    assert done.exit_code == 0, done.output
    assert "1 worker on Ray at local" in done.stderr and "no known settings for this model" in done.stderr
    with NeuralDB.open(tmp_path / "db") as db:
        assert sorted(fact.text for fact in db.facts()) == sorted(fact.text for fact in FACTS)
        assert db.settings["model_name"] == str(model) and db.history()[0].command == "build facts.jsonl"


def test_what_ray_writes_about_its_nodes_is_not_the_command_s_answer(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(*_: Any, **__: Any) -> None:
        print("(raylet) the node has been marked dead")
        raise BuildError("and so the test ends")

    monkeypatch.setattr(ray, "build_on_ray", died)
    facts = write(tmp_path / "facts.jsonl", RECORDS)
    command = ("build", facts, "--out", tmp_path / "db", "--model", model, "--ray", "local", "--workers", 1, "--json")
    done = CliRunner().invoke(cli, [str(word) for word in command])
    assert done.exit_code == 1 and done.stdout == "" and "marked dead" in done.stderr


@pytest.mark.parametrize("alone", [("--ray", "local"), ("--workers", "2")])
def test_ray_and_workers_go_together(alone: tuple[str, ...], tmp_path: Path) -> None:
    command = ("build", "facts.jsonl", "--out", str(tmp_path / "db"), "--model", "m", *alone)
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2 and "--ray and --workers go together" in done.stderr
