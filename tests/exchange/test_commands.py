"""`neuraldb export`, `import` and `push`: they parse, call and print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from helpers.exchanged import assert_equal
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.commands.export import export
from neuraldb_faiss.cli.commands.import_ import import_
from neuraldb_faiss.cli.commands.push import push
from neuraldb_faiss.cli.main import Commands
from neuraldb_faiss.facts import read_facts
from neuraldb_faiss.store import Store


def run(command: click.Command, *arguments: object) -> Result:
    """The command under a group that reports errors as the real one does."""
    group = Commands("neuraldb", params=[click.Option(["--debug"], is_flag=True)])
    group.get_command = lambda ctx, name: command  # type: ignore[assignment, method-assign]
    return CliRunner().invoke(group, [str(command.name), *map(str, arguments)])


def test_facts_go_to_stdout_and_words_to_stderr(rich: Store) -> None:
    done = run(export, rich.root)
    assert done.exit_code == 0, done.output
    assert [json.loads(line)["subject"] for line in done.stdout.splitlines()] == [
        "Marie Curie", "Eiffel Tower", "Lima", "Eiffel Tower", "Oslo",
    ]  # fmt: skip
    assert done.stderr == "5 facts of generation 4\n"
    assert len(run(export, rich.root, "--at", 1).stdout.splitlines()) == 6


def test_the_name_of_the_file_tells_the_format(rich: Store, quick_path: Path) -> None:
    for name, format_ in (("a.jsonl", "jsonl"), ("a.safetensors", "safetensors"), ("plain", "jsonl")):
        done = run(export, rich.root, "--out", quick_path / name, "--json")
        assert done.exit_code == 0, done.output
        size = (quick_path / name).stat().st_size
        assert json.loads(done.stdout) == {
            "out": str(quick_path / name), "format": format_, "generation": 4, "facts": 5, "bytes": size,
        }  # fmt: skip
    assert len(list(read_facts(quick_path / "a.jsonl"))) == 5
    assert run(export, rich.root, "--out", quick_path / "b").stdout.startswith(f"{quick_path / 'b'}: 5 facts of gen")
    out = run(export, rich.root, "--format", "safetensors")
    assert out.stdout_bytes == (quick_path / "a.safetensors").read_bytes()


def test_a_file_becomes_a_database_without_a_model(rich: Store, quick_path: Path) -> None:
    file = quick_path / "a.safetensors"
    assert run(export, rich.root, "--out", file).exit_code == 0
    done = run(import_, file, "--out", quick_path / "made")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{quick_path / 'made'}: generation 1, 5 facts\n"
    assert done.stderr == f"3 facts wait to be solved: `neuraldb solve {quick_path / 'made'}`\n"
    with NeuralDB.open(quick_path / "made") as made:
        assert_equal(rich, made._store)
        assert [one.command for one in made.history()] == ["import a.safetensors"]
    info = json.loads(run(import_, file, "--into", quick_path / "made", "--json").stdout)
    assert (info["generation"], info["facts"]) == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "match"),
    [
        ([], 2, "--out NEW or --into DB"),
        (["--out", "a", "--into", "b"], 2, "--out NEW or --into DB"),
        (["--out", "a", "--model", "m"], 2, "--model belongs to --into"),
        (["--out", "{new}"], 1, "holds facts without vectors: `neuraldb build"),
    ],
)
def test_wrong_usage_and_wrong_files(
    rich: Store, quick_path: Path, arguments: list[str], code: int, match: str
) -> None:
    facts = quick_path / "a.jsonl"
    assert run(export, rich.root, "--out", facts).exit_code == 0
    done = run(import_, facts, *(one.replace("{new}", str(quick_path / "new")) for one in arguments))
    assert done.exit_code == code and match in done.stderr
    assert not (quick_path / "new").exists()


def test_an_error_is_one_line(rich: Store, quick_path: Path) -> None:
    (quick_path / "taken").write_text("mine")
    done = run(export, rich.root, "--out", quick_path / "taken")
    assert (done.exit_code, done.stdout) == (1, "") and done.stderr.count("\n") == 1
    assert "taken is there already" in done.stderr
    assert run(export, rich.root, "--json").exit_code == 2
    assert run(export, quick_path / "missing").exit_code == 1


def test_push_hands_its_options_on(rich: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def pushed(self: NeuralDB, repo: str, **how: Any) -> str:
        given.append({"repo": repo, **how})
        return "https://hub/commit"

    monkeypatch.setattr(NeuralDB, "push_to_hub", pushed)
    assert run(push, rich.root, "me/db").stdout == "https://hub/commit\n"
    options = ["--private", "--revision", "v1", "--message", "hi", "--licence", "mit", "--json"]
    done = run(push, rich.root, "me/db", *options)
    assert json.loads(done.stdout) == {"repo": "me/db", "revision": "v1", "commit": "https://hub/commit"}
    assert given == [
        {"repo": "me/db", "private": None, "revision": None, "commit_message": None, "license": None},
        {"repo": "me/db", "private": True, "revision": "v1", "commit_message": "hi", "license": "mit"},
    ]
