"""docs/errors.md names every error, quotes its docstring, and shows messages that are really given."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.commands import FACTS, Run, write
from helpers.tiny import save_tiny
from neuraldb_faiss import errors

Page = Callable[[str], str]
PACKAGE = Path(errors.__file__).parent
CLASSES = {
    name: one for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, errors.NeuralDBError)
}


def sections(text: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_error_has_a_section_that_quotes_it(page: Page) -> None:
    found = sections(page("errors.md"))
    for name, one in CLASSES.items():
        assert name in found, f"docs/errors.md has no section {name}"
        parent = one.__bases__[0].__name__
        docstring = " ".join((one.__doc__ or "").split())
        assert docstring in " ".join(found[name].split()), f"docs/errors.md: {name} says otherwise than its docstring"
        if parent in CLASSES:
            says = re.search(rf"\bA\s`{parent}`\.", found[name])
            assert says, f"docs/errors.md: {name} does not say that it is a {parent}"
    known = [name for name in found if name.endswith("Error")]
    assert known == list(CLASSES), "docs/errors.md: an error that is gone, or another order than errors.py"


def test_every_section_says_cause_fix_and_exit_code(page: Page) -> None:
    for name, text in sections(page("errors.md")).items():
        if name in CLASSES and name != "NeuralDBError":
            for word in ("**Cause**", "**Fix**", "```text\nError: "):
                assert word in text, f"docs/errors.md: {name} has no {word}"


def test_errors_of_other_modules_are_named(page: Page) -> None:
    """A subclass that is not in errors.py is on the page too."""
    text = page("errors.md")
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.ClassDef)
                and not node.name.startswith("_")
                and {ast.unparse(base) for base in node.bases} & {*CLASSES}
            ):
                assert f"`{node.name}`" in text or node.name in CLASSES, f"docs/errors.md does not name {node.name}"


# ---- each example, provoked with a tiny model in the place of the reader's


@pytest.fixture(scope="module")
def _made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("errors")
    save_tiny(folder / "models" / "mine")
    save_tiny(folder / "models" / "other", "gpt2")
    write(folder / "good.jsonl", FACTS)
    options = ("--out", folder / "indexes/mine", "--model", folder / "models/mine", "--steps", 2)
    (folder / "indexes").mkdir()
    done = run("build", folder / "good.jsonl", *options)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def folder(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with models/mine, models/other and indexes/mine: the working directory."""
    shutil.copytree(_made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


Provoke = Callable[[Run, Path, pytest.MonkeyPatch], str]


def fact(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    bad = {"subject": "Rome", "prompt": "Paris is the capital of", "target": "Italy"}
    write(folder / "facts.jsonl", [FACTS[0], bad])
    return last(run, "build", "facts.jsonl", "--out", "indexes/new", "--model", "models/mine")


def conflict(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    write(folder / "facts.jsonl", [FACTS[0], {**FACTS[0], "target": "Oslo"}])
    return last(run, "build", "facts.jsonl", "--out", "indexes/new", "--model", "models/mine")


def model(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "build", "good.jsonl", "--out", "indexes/new", "--model", "models/none")


def fingerprint(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "generate", "indexes/mine", "Paris", "--model", "models/other")


def building(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "build", "good.jsonl", "--out", "indexes/new", "--model", "models/mine", "--kl-prompt", "It is")


def config(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "build", "good.jsonl", "--out", "indexes/new", "--model", "models/mine", "--gamma", 1.5)


def store(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "info", "indexes/none")


def format_(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    with sqlite3.connect(folder / "indexes/mine/catalog.sqlite") as catalog:
        catalog.execute("PRAGMA user_version = 99")
    return last(run, "info", "indexes/mine")


def corrupt(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    path = next(folder.glob("indexes/mine/segments/*/keys.npy"))
    os.truncate(path, path.stat().st_size - 2)
    return last(run, "info", "indexes/mine")


def compacted(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    assert run("compact", "indexes/mine").exit_code == 0
    return last(run, "rollback", "indexes/mine", "--to", 1)


def locked(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    from neuraldb_faiss.store.lock import writer_lock

    with writer_lock(Path("indexes/mine"), "add weekly.jsonl", wait=0):
        return last(run, "remove", "indexes/mine", "--id", "paris", "--wait", 0)


def search(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "faiss", None)
    return last(run, "reindex", "indexes/mine", "--index", "ivf")


def evaluation(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "report", "runs/none.jsonl", "--out", "page.html")


def serve(run: Run, folder: Path, _: pytest.MonkeyPatch) -> str:
    return last(run, "serve", "indexes/mine", "backup/mine")


PROVOKED: dict[str, Provoke] = {
    "FactError": fact, "ConflictError": conflict, "ModelError": model, "FingerprintError": fingerprint,
    "BuildError": building, "StoreError": store, "FormatError": format_, "CorruptError": corrupt,
    "CompactedError": compacted, "LockedError": locked,
    "SearchError": search, "ConfigError": config, "EvaluationError": evaluation, "ServeError": serve,
}  # fmt: skip


def last(run: Run, *arguments: object) -> str:
    """The line that a command which fails says why with."""
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    return str(done.stderr.strip().splitlines()[-1])


def test_no_error_is_without_an_example() -> None:
    assert PROVOKED.keys() == CLASSES.keys() - {"NeuralDBError"}


@pytest.mark.parametrize("name", PROVOKED)
def test_the_example_is_what_is_said(
    page: Page, run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """On the page … stands for what differs from case to case: numbers, and the descriptions of models."""
    example = re.search(r"```text\n(.+)\n```", sections(page("errors.md"))[name])
    assert example, name
    said = PROVOKED[name](run, folder, monkeypatch)
    pattern = ".*".join(map(re.escape, example[1].split("…")))
    assert re.fullmatch(pattern, said), f"{name} says: {said}"
