"""The command itself, in a process of its own: what it says, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from click.testing import CliRunner

from helpers.serving import PROMPT
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.commands.serve import serve as command

CODE = "from neuraldb_faiss.cli.commands.serve import serve; serve()"


@contextmanager
def started(
    *arguments: object, before: str = "", told: list[str] | None = None, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, which runs the code `before` first, and the URL it says it serves at; `told` gets what it says."""
    process = subprocess.Popen(
        [sys.executable, "-c", before + CODE, *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parents[2], env={**os.environ, **environment},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = [] if told is None else told
        for line in process.stderr:
            lines.append(line)
            if line.startswith("at http://"):
                yield process, line.split()[1].removesuffix("/v1")
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_it_finishes_what_runs_when_it_is_told_to_stop(folder: Path, paths: dict[str, Path]) -> None:
    """SIGTERM in the middle of a stream, with a change under way: the stream ends whole, and the change is made."""
    body: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 200}
    facts = [{"subject": f"Apple {n}", "prompt": "{} was founded by", "target": "Rome"} for n in range(3)]
    arguments = (f"a={paths['a']}", "--model", folder / "tiny", "--grace", 60)
    with started(*arguments, NEURALDB_TOKEN="secret") as (process, url):
        whole = httpx2.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        with httpx2.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}, timeout=60) as answer:
            lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line)
            events = [next(lines)]
            accepted = httpx2.post(f"{url}/facts", json=facts, headers={"Authorization": "Bearer secret"}, timeout=60)
            assert accepted.status_code == 202
            process.send_signal(signal.SIGTERM)
            events += list(lines)
        assert events.pop() == "[DONE]"
        assert "".join(json.loads(one)["choices"][0]["text"] for one in events) == whole
        assert process.wait(60) == 0
        assert process.stderr is not None and process.stderr.read().splitlines()[-1] == "stopped"
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{url}/health")
    with NeuralDB.open(paths["a"]) as db:
        assert len(db) == 7 and db.generation == 2 and db.verify(deep=True) == []


def test_a_change_that_is_too_long_for_the_grace_is_not_made(folder: Path, paths: dict[str, Path]) -> None:
    facts = [{"subject": f"Apple {n}", "prompt": "{} was founded by", "target": "Rome"} for n in range(200)]
    with started(f"a={paths['a']}", "--model", folder / "tiny", "--grace", 0, "--token", "secret") as (process, url):
        headers = {"Authorization": "Bearer secret"}
        job = httpx2.post(f"{url}/facts", json=facts, headers=headers, timeout=60).headers["Location"]
        while httpx2.get(f"{url}{job}", timeout=60).json()["state"] == "queued":
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with NeuralDB.open(paths["a"]) as db:
        assert len(db) == 4 and db.generation == 1 and db.verify(deep=True) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "no database at nowhere"),
        (["a={a}", "--model", "{folder}/nothing"], "nothing"),
        (["a={a}", "b={b}", "--token", "c=x"], "there is a token for 'c'"),
        (["a={a}", "a={b}"], "two databases are called 'a'"),
        (["a={a}", "b={b}", "--default", "c"], "--default c: the databases are a, b"),
        (["a={a}", "--host", "256.1.1.1"], "cannot serve on 256.1.1.1"),
    ],
)
def test_what_cannot_be_served_is_said(folder: Path, paths: dict[str, Path], arguments: list[str], told: str) -> None:
    filled = [one.format(folder=folder, **paths) for one in arguments]
    done = CliRunner().invoke(command, [*filled, "--port", "0"])
    assert done.exit_code == 1 and told in str(done.exception)


def test_several_databases_without_a_default_are_warned_of(folder: Path, paths: dict[str, Path]) -> None:
    both = (f"a={paths['a']}", f"b={paths['b']}", "--model", folder / "tiny")
    with started(*both, "--default", "b") as (_, url):
        body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 2}
        answer = httpx2.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.headers["X-NeuralDB-Generation"] == "1"
    told: list[str] = []
    with started(*both, told=told):
        pass
    (warning,) = [line for line in told if "alone get no facts" in line]
    assert "tiny+a" in warning and "--default and one of a, b, none" in warning


def test_a_database_of_another_model_is_refused(folder: Path, paths: dict[str, Path], tmp_path: Path) -> None:
    from helpers.tiny import save_tiny

    other = save_tiny(tmp_path / "gpt2", "gpt2")
    done = CliRunner().invoke(command, [f"a={paths['a']}", "--model", str(other), "--port", "0"])
    assert done.exit_code == 1 and "built with" in str(done.exception)
