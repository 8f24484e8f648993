"""The benchmarks run, and report ratios; what the ratios are is nobody's test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.tiny import tiny
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.benchmarks import synthetic
from neuraldb_faiss.research.benchmarks.building import bench_build, loss_of
from neuraldb_faiss.research.benchmarks.search import lifted
from neuraldb_faiss.research.benchmarks.timing import measure
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.store import Store, verify


@pytest.mark.parametrize(
    ("what", "ratios"),
    [
        ("merge", {"merge_to_cp_ratio", "merge_link_to_cp_ratio"}),
        ("open", {"open_to_first_open_ratio"}),
        ("refresh", {"plain_refresh_to_open_ratio", "guarded_refresh_to_open_ratio"}),
    ],
)
def test_each_benchmark_reports_its_ratios_and_leaves_no_files(what: str, ratios: set[str], tmp_path: Path) -> None:
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


def test_search_reports_ratios_and_recall(tmp_path: Path) -> None:
    synthetic.make(tmp_path / "db", 600, d1=64, d2=4).close()
    options = ["--db", str(tmp_path / "db"), "--facts", "500", "--d1", "96", "--repeats", "2", "--peer", "torch"]
    done = CliRunner().invoke(cli, ["bench", "search", *options, "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    ratios = {f"{name}_{batch}_to_numpy_ratio" for name in ("numpy", "sketch", "torch") for batch in (1, 64)}
    assert {name for name in report if "ratio" in name} == ratios and report["missing"] == []
    assert (report["keys"], report["d1"], report["sketch_gated_recall"]) == (500, 96, 1.0)
    assert 0 < report["fired_by_brute_force"] < report["queries"]
    refused = CliRunner().invoke(cli, ["bench", "search", "--db", str(tmp_path / "db"), "--peer", "magic"])
    assert refused.exit_code == 1 and "unknown way to search 'magic'" in refused.stderr


def test_lifted_keys_keep_their_cosines() -> None:
    keys = np.random.default_rng(0).standard_normal((50, 20)).astype(np.float16)
    small, large = lifted(keys, 20), lifted(keys, 300)
    assert large.shape == (50, 300)
    np.testing.assert_allclose(small @ small.T, large @ large.T, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sampled"])
def test_the_reference_build_solves_the_same(optimizer: str) -> None:
    model, tokenizer = tiny("llama", "bytelevel")
    editor = Editor.new(model, tokenizer, layer=1, optimizer=optimizer, stop_loss=0.05)
    facts = [Fact("Eiffel Tower", "The {} is in", "Rome"), Fact("Paris", "{} is the capital of", "Italy")]
    report = bench_build(editor, facts, repeats=1)
    assert report["facts"] == 2 and report["reference_to_ours_ratio"] > 0
    ours, reference = report["loss"]["ours"], report["loss"]["reference"]
    unedited = [loss_of(editor, fact, np.zeros(editor.site.d2, np.float32)) for fact in facts]
    assert max(ours, reference) < np.mean(unedited)
    if optimizer == "adam":
        assert ours == pytest.approx(reference, rel=1e-3)
