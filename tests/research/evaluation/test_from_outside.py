"""A dataset and an experiment of another package: one file and one entry point each, used through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOY = """
from neuraldb_faiss.research.datasets.cases import Case
from neuraldb_faiss.research.datasets.registry import Dataset
from neuraldb_faiss.research.experiments.lab import Result
from neuraldb_faiss.research.experiments.registry import Experiment

DEFAULTS = {"times": 2}


def case(fact, references):
    return Case(fact, paraphrases=(fact.text,), compared=fact.target_true is not None)


def run(lab):
    return Result([{"times": lab.config["times"]}], "a table", {})


dataset = Dataset("toy", "A toy.", "Toy", "counterfact", "toy_kinds:case", frozenset({"old"}))
experiment = Experiment("toy", "A toy experiment.", "toy_kinds")
"""
POINTS = """[neuraldb_faiss.datasets]
toy = toy_kinds:dataset

[neuraldb_faiss.experiments]
toy = toy_kinds:experiment
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which the toy is installed."""
    (tmp_path / "toy_kinds.py").write_text(TOY, encoding="utf-8")
    info = tmp_path / "toy_kinds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-kinds\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(POINTS, encoding="utf-8")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


def neuraldb(environment: dict[str, str], *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "neuraldb_faiss.cli", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experiment(installed: dict[str, str], tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    assert "A toy experiment." in neuraldb(installed, "experiment", "--help")
    out = tmp_path / "out"
    neuraldb(
        installed, "experiment", "toy", "--model", tiny_model, "--cases", cases_file, "--facts", 2, "--out", out,
        "--set", "times=7",
    )  # fmt: skip
    assert json.loads((out / "rows.jsonl").read_text(encoding="utf-8")) == {"times": 7}


def test_a_dataset(installed: dict[str, str], tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    db = tmp_path / "db"
    neuraldb(installed, "build", cases_file, "--model", tiny_model, "--out", db, "--limit", 2, "--residual", "none")
    shown = neuraldb(
        installed, "eval", db, "--dataset", "toy", "--cases", cases_file, "--out", tmp_path / "r", "--json"
    )
    figures = json.loads(shown)
    assert "generalization" in json.dumps(figures) and "specificity" not in json.dumps(figures)
