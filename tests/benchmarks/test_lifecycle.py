"""The benchmarks run, and report ratios; what the ratios are is nobody's test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuraldb_faiss.benchmarks import synthetic
from neuraldb_faiss.benchmarks.timing import measure
from neuraldb_faiss.cli.app import cli
from neuraldb_faiss.store import Store, verify


@pytest.mark.parametrize(
    ("what", "ratios"),
    [
        ("merge", {"merge_to_cp_ratio", "merge_link_to_cp_ratio"}),
        ("refresh", {"plain_refresh_to_open_ratio", "guarded_refresh_to_open_ratio"}),
    ],
)
def test_reports_ratios(what: str, ratios: set[str], tmp_path: Path) -> None:
    options = ["--facts", "60", "--d1", "8", "--d2", "4", "--repeats", "2", "--work", str(tmp_path), "--json"]
    done = CliRunner().invoke(cli, ["bench", what, *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {name for name in report if "ratio" in name} == ratios
    assert all(report[name] > 0 for name in ratios)
    assert all(one["low"] <= one["median"] <= one["high"] for one in report["seconds"].values())
    assert list(tmp_path.iterdir()) == []


def test_synthetic_databases_are_real_ones(tmp_path: Path) -> None:
    store = synthetic.make(tmp_path / "db", 30, d1=8, d2=4)
    synthetic.append(store, 5, first=30)
    store.close()
    again = Store(tmp_path / "db")
    assert verify(again, deep=True) == []
    assert (again.generation, again.catalog.generations()[-1].facts, again.snapshot().n_keys) == (2, 35, 70)


def test_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    timing = measure(lambda: calls.append("run"), repeats=3, warm_up=2, before=lambda: calls.append("before"))
    assert calls == ["before", "run"] * 5 and timing.repeats == 3
