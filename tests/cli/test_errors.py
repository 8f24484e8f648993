"""Bad input gets one clear line and exit code 1, and every file stays as it was."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from helpers.commands import FACTS, Run, digest, write
from helpers.tiny import save_tiny


def refused(result: Result, *words: str) -> None:
    """Exit code 1, nothing on stdout, and a last line on stderr that says all these words."""
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), result.stderr
    assert "unexpected" not in lines[-1] and "Traceback" not in result.output
    for word in words:
        assert word in lines[-1]
    assert not [line for line in lines[:-1] if line.startswith("Error")]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return write(tmp_path / "facts.jsonl", FACTS)


BAD_RECORDS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "nothing": ([""], ("no facts",)),
    "malformed": ([*[FACTS[0]] * 16, '{"subject": '], ("line 17", "JSON")),
    "no subject": (
        [{"subject": "Rome", "prompt": "Paris is", "target": "x"}],
        ("line 1", "not in the prompt"),
    ),
    "no target": ([{"subject": "Rome", "prompt": "{} is", "target": " "}], ("line 1", "target is empty")),
    "conflict": ([FACTS[0], {**FACTS[0], "target": "Bonn"}], ("conflict", "Rome", "Bonn")),
    "one id": ([FACTS[0], {**FACTS[1], "id": "tower"}], ("'tower'",)),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_bad_facts_change_nothing(run: Run, model: Path, db: Path, tmp_path: Path, kind: str) -> None:
    records, words = BAD_RECORDS[kind]
    bad, before = write(tmp_path / "bad.jsonl", records), digest(tmp_path)
    refused(run("build", bad, "--out", tmp_path / "new", "--model", model), *words)
    if kind != "nothing":
        refused(run("add", db, bad), *words)
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


BAD_OPTIONS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "layer": (["--layer", 4], ("layer 4", "0 to 3")),
    "gamma": (["--gamma", 1.5], ("gamma is 1.5",)),
    "gamma nan": (["--gamma", "nan"], ("gamma is nan",)),
    "module": (["--ffn-module", "model.layers.{}.mlp.nothing"], ("model.layers.{}.mlp.nothing",)),
    "device": (["--device", "abacus"], ("abacus",)),
}


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_bad_options_change_nothing(run: Run, model: Path, facts: Path, tmp_path: Path, kind: str) -> None:
    options, words = BAD_OPTIONS[kind]
    before = digest(tmp_path)
    refused(run("build", facts, "--out", tmp_path / "new", "--model", model, *options), *words)
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_missing_file_model_or_database_is_named(run: Run, model: Path, facts: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    refused(run("build", tmp_path / "none.jsonl", "--out", new, "--model", model), "none.jsonl", "does not exist")
    refused(run("build", facts, "--out", new, "--model", tmp_path / "none"), "no model at")
    for command in ("info", "facts", "history", "verify", "compact"):
        refused(run(command, tmp_path / "none"), "no database at", "none")
    refused(run("generate", tmp_path / "none", "Paris"), "no database at")
    assert not new.exists()


def test_a_model_without_an_ffn(run: Run, facts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.models import sites

    model = save_tiny(tmp_path / "model")
    monkeypatch.setattr(sites, "FFN_PATHS", ("mlp.nothing",))
    refused(run("build", facts, "--out", tmp_path / "new", "--model", model), "no feed-forward", "--ffn-module")
    assert not (tmp_path / "new").exists()


def test_the_wrong_model(run: Run, db: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "gpt2")
    before = digest(db)
    for command in (
        ("generate", db, "Paris"),
        ("explain", db, "Paris"),
        ("add", db, write(tmp_path / "f", FACTS)),
    ):
        refused(run(*command, "--model", other), "this")
    assert digest(db) == before


def _drop_catalog(db: Path) -> None:
    (db / "catalog.sqlite").unlink()


def _drop_segment(db: Path) -> None:
    shutil.rmtree(next((db / "segments").iterdir()))


def _truncate(db: Path) -> None:
    path = next(db.glob("segments/*/keys.npy"))
    os.truncate(path, path.stat().st_size - 2)


def _newer(db: Path) -> None:
    with sqlite3.connect(db / "catalog.sqlite") as catalog:
        catalog.execute("PRAGMA user_version = 99")


def _no_sqlite(db: Path) -> None:
    (db / "catalog.sqlite").write_bytes(b"hello" * 1000)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_drop_catalog, "half-copied"), (_drop_segment, "segments"), (_truncate, "keys.npy"),
        (_newer, "format 99"), (_no_sqlite, "catalog.sqlite"),
    ],
)  # fmt: skip
def test_damaged_databases(run: Run, db: Path, damage: Callable[[Path], None], word: str) -> None:
    damage(db)
    before = digest(db)
    for command in (("info", db), ("generate", db, "Paris"), ("remove", db, "--id", "paris")):
        refused(run(*command), word)
    assert digest(db) == before


def test_a_folder_that_may_not_be_written(run: Run, db: Path, facts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the question is answered for it.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **how: mode != os.W_OK and real(path, mode, **how))
    before = digest(db)
    refused(run("remove", db, "--id", "paris"), "read-only")
    refused(run("rollback", db, "--to", 1), "read-only")
    assert digest(db) == before
    assert run("facts", db).exit_code == 0
    assert run("verify", db, "--deep").exit_code == 0


@pytest.mark.parametrize("command", ["build", "add"])
def test_a_full_disk(
    run: Run, model: Path, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    from neuraldb_faiss.store import files

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "keys.npy")

    more = write(tmp_path / "more.jsonl", [{"subject": "Bonn", "prompt": "{} is in", "target": "Peru"}])
    before = digest(tmp_path)
    arguments = ["add", db, more] if command == "add" else ["build", more, "--out", tmp_path / "new", "--model", model]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", full)
        refused(run(*arguments), "No space left", "keys.npy")
    after = digest(tmp_path)
    if command == "build":
        assert after == before
    assert run("verify", db, "--deep").exit_code == 0
    assert run("facts", db).stdout.count("\n") == 4
    assert run(*arguments).exit_code == 0  # space was made


def test_a_second_writer(run: Run, db: Path) -> None:
    from neuraldb_faiss.store.lock import writer_lock

    with writer_lock(db, "compact", wait=0):
        before = digest(db)
        refused(run("remove", db, "--id", "paris", "--wait", 0), "being written by", str(os.getpid()), "compact")
        assert digest(db) == before
    assert run("remove", db, "--id", "paris", "--wait", 0).exit_code == 0


def test_nan_activations(run: Run, facts: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    model = save_tiny(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] = np.full_like(weights["model.layers.1.mlp.up_proj.weight"], np.nan)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    before = digest(tmp_path)
    for residual in ("memit", "none"):
        done = run("build", facts, "--out", tmp_path / "new", "--model", model, "--residual", residual)
        refused(done, "not finite")
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


def test_a_finished_database_is_not_built_again(run: Run, model: Path, db: Path, facts: Path) -> None:
    before = digest(db)
    refused(run("build", facts, "--out", db, "--model", model), "finished database", "neuraldb add")
    assert digest(db) == before


def test_unknown_generations_and_ids(run: Run, db: Path) -> None:
    before = digest(db)
    refused(run("rollback", db, "--to", 7), "generation 7 does not exist")
    refused(run("facts", db, "--at", 7), "generation 7 does not exist")
    refused(run("remove", db, "--id", "nobody"), "nobody")
    refused(run("generate", db, " "), "prompt is empty")
    refused(run("explain", db, ""), "prompt is empty")
    assert digest(db) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",), ("info",), ("remove", "db"), ("build", "f"), ("facts", "db", "--json", "--csv"),
        ("build", "f", "--out", "o", "--model", "m", "--shard", "0/2"),
        ("build", "f", "--out", "o", "--model", "m", "--shard", "two"),
        ("build", "f", "--out", "o", "--model", "m", "--nlist", "3"),
        ("build", "f", "--out", "o", "--model", "m", "--preset", "paper", "--keys", "two"),
        ("build", "f", "--out", "o", "--model", "m", "--preset", "paper", "--gamma", "0.7"),
        ("reindex", "db", "--index", "flat", "--nprobe", "3"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and "Usage:" in done.stderr and not done.stdout


def test_a_mistyped_command_gets_a_suggestion(run: Run) -> None:
    done = run("rolback", "db")
    assert done.exit_code == 2 and "no command 'rolback'" in done.stderr and "Did you mean rollback?" in done.stderr
    assert "Did you mean" not in run("zzzz").stderr


def test_debug_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    done = run("--debug", "info", tmp_path / "none")
    assert done.exit_code == 1 and done.exc_info is not None
    assert "no database at" in "".join(traceback.format_exception(*done.exc_info))
    done = run("info", tmp_path / "none", env={"NEURALDB_DEBUG": "1"})
    assert type(done.exception).__name__ == "StoreError"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (PermissionError(13, "Permission denied", "f"), "f: Permission denied"),
        (KeyError("x"), "unexpected KeyError: 'x'"), (OSError("no\nlines"), "no lines"),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_one_line(
    run: Run, db: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    from neuraldb_faiss.database import NeuralDB

    def fail(_: Any) -> None:
        raise error

    monkeypatch.setattr(NeuralDB, "info", fail)
    done = run("info", db)
    assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"Error: {line}")


def test_an_interrupted_command_says_how_to_resume(run: Run, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.database import NeuralDB

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NeuralDB, "info", stop)
    done = run("info", db)
    assert done.exit_code == 130 and "Run the command again to resume" in done.stderr


@pytest.mark.parametrize("command", [("info",), ("info", "no-such-folder")])
def test_a_command_leaves_the_log_s_settings_as_it_found_them(run: Run, db: Path, command: tuple[str, ...]) -> None:
    """For a program that calls commands, and has handlers of its own."""
    logger = logging.getLogger("neuraldb_faiss")
    before = logger.handlers, logger.level, logger.propagate
    run(*command, *([db] if len(command) == 1 else []))
    assert (logger.handlers, logger.level, logger.propagate) == before
