"""A tiny model on disk, a few facts, a database built of them by the command itself."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers.commands import FACTS, Run, write
from helpers.tiny import save_tiny
from neuraldb_faiss.cli.main import cli


@pytest.fixture(scope="session")
def run() -> Run:
    """`run("info", db)`: the command in this process, stdout and stderr apart."""

    def invoke(*arguments: object, **how: Any) -> Result:
        return CliRunner().invoke(cli, [str(one) for one in arguments], **how)

    return invoke


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def _original(run: Run, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    out = folder / "db"
    facts = write(folder / "facts.jsonl", FACTS)
    # Long residuals, which show in what this random model writes.
    steps = ("--steps", 12, "--max-steps", 0, "--clamp", 10)
    done = run("build", facts, "--out", out, "--model", model, *steps)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture
def db(_original: Path, tmp_path: Path) -> Path:
    """A database of FACTS, this test's own."""
    return Path(shutil.copytree(_original, tmp_path / "db"))
