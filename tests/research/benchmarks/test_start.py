"""What starting costs: wrong commands are refused, light ones answer, and what is not as it should be is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.benchmarks import start


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "REFUSALS", {"half a fact": start.REFUSALS["build: half a fact"]})
    monkeypatch.setattr(start, "LIGHT", {"info": start.LIGHT["info"]})
    found = start.bench_start(tmp_path, db=None, repeats=1)
    (refusal,) = found["refusals_cpu_seconds"].values()
    assert 0 < refusal["low"] <= refusal["median"] <= refusal["high"] == found["slowest_refusal_cpu_seconds"]
    assert found["cpu_seconds"]["info"]["median"] > 0


def test_what_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "REFUSALS", {"none": ("--version", "no such thing")})
    with pytest.raises(EvaluationError, match="was not refused"):
        start.bench_start(tmp_path, db=None, repeats=1)


def test_a_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "REFUSALS", {"half a fact": start.REFUSALS["build: half a fact"]})
    monkeypatch.setattr(start, "LIGHT", {"info": "info nothing"})
    with pytest.raises(EvaluationError, match="failed: Error: no database at nothing"):
        start.bench_start(tmp_path, db=None, repeats=1)
