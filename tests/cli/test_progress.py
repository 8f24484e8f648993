"""Progress where there is no terminal: a line at once, one with the time left after the first batch, then some."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import FACTS, Run, write
from neuraldb_faiss.cli import output
from neuraldb_faiss.edits.pipeline import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(3)`: three seconds pass."""
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    return wait


def test_lines(clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]) -> None:
    with output.progress("building") as report:
        clock(60)  # before the first fact: no part of the rate
        report(Progress(10, 40, 10, None))
        clock(2)
        report(Progress(14, 40, 10, None))  # the first batch tells the rate
        clock(1)
        report(Progress(18, 40, 10, 0.5))  # too soon after the last line
        clock(4)
        report(Progress(22, 40, 10, 0.25))
        report(Progress(40, 40, 10, 0.125))
        report(Progress(40, 40, 10, 0.125))  # nothing new
    assert capsys.readouterr().err.splitlines() == [
        "building: 10 of 40 facts",
        "building: 14 of 40 facts, 2 facts/s, 13 s left",
        "building: 22 of 40 facts, 1.7 facts/s, 10 s left, mean loss 0.250",
        "building: 40 of 40 facts, 4.3 facts/s, mean loss 0.125",
    ]


def test_silence_is_broken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing is reported for a while, a line says what is done; where something is, none does."""
    timers: list[Any] = []

    class Timer:
        def __init__(self, seconds: float, call: Callable[..., None], arguments: list[str]) -> None:
            self.seconds, self.ring, self.cancelled = seconds, lambda: call(*arguments), False
            timers.append(self)

        def start(self) -> None: ...

        def cancel(self) -> None:
            self.cancelled = True

    monkeypatch.setattr(threading, "Timer", Timer)
    with output.progress("importing") as report:
        assert timers[0].seconds < 2 and not timers[0].cancelled
        timers[0].ring()
        report(Progress(0, 3, 0, None))
        assert timers[0].cancelled
    assert capsys.readouterr().err.splitlines() == ["importing ...", "importing: 0 of 3 facts"]


def test_a_build_tells_batches(run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is on disk as a whole, but each of its batches is told."""
    from neuraldb_faiss.solver import residuals

    monkeypatch.setattr(residuals, "CPU_TOKENS", 1)  # a batch a fact
    monkeypatch.setattr(output, "LOG_EVERY", 0.0)
    facts = write(tmp_path / "facts.jsonl", FACTS)
    done = run("build", facts, "--out", tmp_path / "new", "--model", model, "--steps", 1, "--max-steps", 0)
    told = [line.partition(" facts")[0] for line in done.stderr.splitlines() if line.startswith("building:")]
    assert done.exit_code == 0 and told[0] == "building: 0 of 4" and told[-1] == "building: 4 of 4"
    assert len(told) >= 4, told
