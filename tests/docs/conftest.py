"""The pages, and the command in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from helpers.commands import Run
from neuraldb_faiss.cli.main import cli

DOCS = Path(__file__).resolve().parents[2] / "docs"
Page = Callable[[str], str]


@pytest.fixture(scope="session")
def page() -> Page:
    """`page("errors.md")`: its text."""
    return lambda name: (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def run() -> Run:
    """`run("info", db)`: the command in this process, stdout and stderr apart."""

    def invoke(*arguments: object, **how: Any) -> Result:
        return CliRunner().invoke(cli, [str(one) for one in arguments], **how)

    return invoke
