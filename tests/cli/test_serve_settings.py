"""Settings of `neuraldb serve` from a file, the environment and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from helpers.commands import Run
from neuraldb_faiss.cli.commands.serve import serve


def read(arguments: list[str]) -> dict[str, Any]:
    """The values that the command would run with."""
    with serve.make_context("serve", arguments) as context:
        return context.params


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "neuraldb.toml"
    path.write_text('[serve]\ndatabases = ["en=a", "fr=b"]\nport = 9000\nmax-batch = 4\ntoken = ["s1", "fr=s2"]\n')
    return path


def test_a_file_sets_arguments_and_options(config: Path) -> None:
    found = read(["--config", str(config)])
    assert found["databases"] == ("en=a", "fr=b") and found["port"] == 9000
    assert found["batch"] == 4 and found["tokens"] == ("s1", "fr=s2")


def test_the_environment_comes_before_the_file_and_options_before_both(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALDB_CONFIG", str(config))
    monkeypatch.setenv("NEURALDB_SERVE_PORT", "9001")
    monkeypatch.setenv("NEURALDB_SERVE_MAX_BATCH", "5")
    monkeypatch.setenv("NEURALDB_SERVE_ALLOWED_HOST", "one two")
    found = read(["--max-queue", "7"])
    assert (found["port"], found["batch"], found["queue"]) == (9001, 5, 7)
    assert (found["databases"], found["allowed_hosts"]) == (("en=a", "fr=b"), ("one", "two"))
    assert read(["--max-batch", "6"])["batch"] == 6
    assert found["default"] is None
    monkeypatch.setenv("NEURALDB_SERVE_DEFAULT", "fr")
    assert read([])["default"] == "fr" and read(["--default", "none"])["default"] == "none"
    monkeypatch.setenv("NEURALDB_SERVE_DATABASES", "x y")
    assert read([])["databases"] == ("x", "y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\nprot = 1\n", "[serve] has no setting 'prot'; it has allowed-host,"),
        ('[serve]\ndatabases = "a"\n', "databases in [serve] must be a list"),
        ("[serve]\nport = [1]\n", "port in [serve] must be one value"),
        ("serve = 3\n", "serve must be a table"),
        ("[serve\n", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "neuraldb.toml"
    path.write_text(text)
    with pytest.raises(click.ClickException) as told:
        read(["--config", str(path)])
    assert words in told.value.message


def test_tokens_from_files(run: Run, db: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("\n")
    assert "holds no token" in run("serve", db, "--token-file", empty).stderr
    assert "cannot be read" in run("serve", db, "--token-file", tmp_path / "none").stderr
    twice = tmp_path / "twice"
    twice.write_text("one\ntwo\n")
    assert "there are two tokens for all databases" in run("serve", db, "--token-file", twice).stderr
