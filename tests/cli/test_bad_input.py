"""What bad input gets: one clear line, exit code 1, every file as it was. LINES says which test shows which line; here
are those that ask more than one command, or more than one kind of damage."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from cli.test_errors import BAD_OPTIONS, BAD_RECORDS, refused
from helpers.commands import FACTS, Run, digest, write
from helpers.tiny import save_tiny

LINES: dict[str, tuple[str, ...]] = {
    "no facts": (
        "test_errors.test_bad_facts_change_nothing[nothing]", "test_bad_input.test_adding_nothing_changes_nothing",
    ),
    "malformed line 17": ("test_errors.test_bad_facts_change_nothing[malformed]",),
    "subject not in prompt": ("test_errors.test_bad_facts_change_nothing[no subject]",),
    "empty target": ("test_errors.test_bad_facts_change_nothing[no target]",),
    "unknown layer": (
        "test_errors.test_bad_options_change_nothing[layer]", "test_bad_input.test_layers_that_do_not_exist",
    ),
    "model without an FFN": (
        "test_errors.test_a_model_without_an_ffn", "test_bad_input.test_a_model_that_has_no_ffn",
    ),
    "wrong model for the database": ("test_errors.test_the_wrong_model",),
    "database missing": ("test_errors.test_a_missing_file_model_or_database_is_named",),
    "half-copied": ("test_errors.test_damaged_databases",),
    "truncated array": ("test_errors.test_damaged_databases",),
    "flipped byte (by verify --deep)": ("test_bad_input.test_a_flipped_byte",),
    "newer format version": ("test_errors.test_damaged_databases",),
    "writing to a read-only folder (reading one works)": (
        "test_errors.test_a_folder_that_may_not_be_written",
        "test_bad_input.test_every_writer_needs_a_folder_it_may_write",
    ),
    "disk full while building": ("test_errors.test_a_full_disk",),
    "a second writer": ("test_errors.test_a_second_writer", "test_bad_input.test_every_writer_waits_its_turn"),
    "out-of-range gamma": (
        "test_errors.test_bad_options_change_nothing[gamma]", "test_bad_input.test_gammas_that_are_no_cosines",
    ),
    "NaN activations while building": ("test_errors.test_nan_activations",),
}  # fmt: skip

WRITING: dict[str, tuple[Any, ...]] = {
    "add": ("add", "DB", "FACTS"),
    "remove": ("remove", "DB", "--id", "paris"),
    "rollback": ("rollback", "DB", "--to", 1),
    "compact": ("compact", "DB"),
    "reindex": ("reindex", "DB", "--index", "ivf"),
    "merge": ("merge", "OTHER", "--into", "DB"),
}


def filled(command: tuple[Any, ...], **places: Path) -> list[Any]:
    return [places.get(one, one) if isinstance(one, str) else one for one in command]


@pytest.fixture
def places(run: Run, model: Path, db: Path, tmp_path: Path) -> dict[str, Path]:
    """DB, a database OTHER, and FACTS that neither has."""
    new = write(tmp_path / "new.jsonl", [{"subject": "Bonn", "prompt": "{} is in", "target": "Peru"}])
    other = tmp_path / "other"
    done = run("build", new, "--out", other, "--model", model, "--residual", "memit", "--steps", 1, "--layer", 1)
    assert done.exit_code == 0, done.output
    return {"DB": db, "OTHER": other, "FACTS": new}


@pytest.mark.parametrize("line", LINES)
def test_every_line_has_its_test(line: str) -> None:
    for name in LINES[line]:
        module, _, test = name.partition(".")
        function, _, case = test.partition("[")
        assert callable(getattr(import_module(f"cli.{module}"), function))
        assert not case or case.rstrip("]") in {**BAD_RECORDS, **BAD_OPTIONS}


def test_adding_nothing_changes_nothing(run: Run, db: Path, tmp_path: Path) -> None:
    """To a database that has facts no more need come: a filter in front of `add` may find none. `build` refuses."""
    empty = write(tmp_path / "empty.jsonl", [""])
    before = digest(tmp_path)
    done = run("add", db, empty)
    assert done.exit_code == 0 and "nothing was new" in done.stdout
    assert digest(tmp_path) == before


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_layers_that_do_not_exist(run: Run, model: Path, db: Path, tmp_path: Path, layer: int) -> None:
    facts, before = write(tmp_path / "facts.jsonl", FACTS), digest(db)
    for command in (("build", facts), ("rebuild", db)):
        done = run(*command, "--out", tmp_path / "new", "--model", model, "--layer", layer)
        refused(done, f"layer {layer}", "0 to 3")
    assert digest(db) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind", ["mamba", "mixtral"])
def test_a_model_that_has_no_ffn(run: Run, db: Path, tmp_path: Path, kind: str) -> None:
    other, facts = save_tiny(tmp_path / "model", kind), write(tmp_path / "facts.jsonl", FACTS)
    before = digest(tmp_path)
    words = ("no feed-forward" if kind == "mamba" else "mixture of experts", "--ffn-module")
    refused(run("build", facts, "--out", tmp_path / "new", "--model", other, "--layer", 1), *words)
    refused(run("rebuild", db, "--out", tmp_path / "new", "--model", other, "--layer", 1), *words)
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["keys.npy", "residuals.npy"])
@pytest.mark.parametrize("where", [0.5, 0.999])
def test_a_flipped_byte(run: Run, db: Path, name: str, where: float) -> None:
    path = next(db.glob(f"segments/*/{name}"))
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 4
    path.write_bytes(content)
    before = digest(db)
    done = run("verify", db, "--deep")
    assert done.exit_code == 1 and "Traceback" not in done.output
    told = [line for line in done.stdout.splitlines() if name in line]
    assert len(told) == 1 and "checksum" in told[0]
    assert run("facts", db).exit_code == 0 and digest(db) == before


@pytest.mark.parametrize("command", WRITING)
def test_every_writer_needs_a_folder_it_may_write(
    run: Run, model: Path, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    import os

    real = os.access  # root may write anywhere, so the question is answered for it
    monkeypatch.setattr(os, "access", lambda path, mode, **how: mode != os.W_OK and real(path, mode, **how))
    before = {name: digest(path) for name, path in places.items() if path.is_dir()}
    refused(run(*filled(WRITING[command], **places)), "read-only")
    assert {name: digest(path) for name, path in places.items() if path.is_dir()} == before
    assert run("info", places["DB"]).exit_code == 0


@pytest.mark.parametrize("command", WRITING)
def test_every_writer_waits_its_turn(run: Run, places: dict[str, Path], command: str) -> None:
    """The other writer is another process."""
    db = places["DB"]
    script = (
        "import sys; from pathlib import Path; from neuraldb_faiss.store.lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1]), 'compact', wait=0):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(db)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).resolve().parents[2],
    ) as writer:  # fmt: skip
        assert writer.stdout is not None and writer.stdout.readline() == "held\n"
        before = digest(db)
        refused(run(*filled(WRITING[command], **places), "--wait", 0), "being written by", str(writer.pid))
        assert digest(db) == before
        writer.communicate("")


@pytest.mark.parametrize("gamma", ["1.5", "1", "-0.1", "nan", "inf"])
def test_gammas_that_are_no_cosines(run: Run, model: Path, places: dict[str, Path], tmp_path: Path, gamma: str) -> None:
    before = digest(tmp_path)
    for command in (
        ("build", "FACTS", "--out", tmp_path / "new", "--model", model),
        ("generate", "DB", "Paris is"), ("explain", "DB", "Paris is"),
        ("merge", "DB", "OTHER", "--out", tmp_path / "new"),
    ):  # fmt: skip
        refused(run(*filled(command, **places), "--gamma", gamma), "gamma is")
    assert digest(tmp_path) == before and not (tmp_path / "new").exists()
