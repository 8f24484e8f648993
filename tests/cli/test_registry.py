"""The registry of commands: one module a command, groups in the help, and commands of other packages."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from helpers.commands import Run
from neuraldb_faiss.cli import commands
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.cli.registry import GROUPS, OTHERS, REGISTRY

TOY = """
import click

from neuraldb_faiss.cli import options as opt


@click.command()
@opt.db
def count_facts(db):
    '''Count the facts of DB.'''
    from neuraldb_faiss import NeuralDB

    with NeuralDB.open(db) as database:
        click.echo(f"{len(database)} facts")
"""


def _install(folder: Path, rows: str, module: str = TOY) -> None:
    """What `pip install` leaves of a package with these rows in its entry point group for commands."""
    (folder / "toy_commands.py").write_text(module)
    info = folder / "toy_commands-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-commands\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[neuraldb_faiss.commands]\n{rows}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages on the path, seen by the registry for the length of a test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    REGISTRY.__dict__.pop("kinds", None)  # read anew
    yield folder
    REGISTRY.__dict__.pop("kinds", None)
    sys.modules.pop("toy_commands", None)


def test_a_command_of_another_package_is_listed_and_runs(run: Run, db: Path, site: Path) -> None:
    _install(site, "count-facts = toy_commands:count_facts")
    listed = run("--help").stdout
    assert OTHERS in listed and "count-facts" in listed and "Count the facts of DB." in listed
    done = run("count-facts", db)
    assert done.exit_code == 0 and done.stdout == "4 facts\n"
    missing = run("count-facts", db / "nothing")
    assert missing.exit_code == 1 and missing.stderr.startswith("Error: no database at")
    assert "Did you mean count-facts?" in run("count-fact", db).stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [("nowhere:command", "No module named 'nowhere'"), ("toy_commands:TEXT", "is a str, not a click command")],
)
def test_a_broken_command_of_another_package_says_why_and_breaks_nothing(
    run: Run, db: Path, site: Path, target: str, words: str
) -> None:
    _install(site, f"broken = {target}", "TEXT = 'no command'\n")
    assert run("--help").exit_code == 0 and run("info", db).exit_code == 0
    done = run("broken")
    assert done.exit_code == 1 and words in " ".join(done.stderr.split()) and "neuraldb_faiss.commands" in done.stderr


def test_another_package_cannot_replace_a_command(run: Run, db: Path, site: Path) -> None:
    _install(site, "facts = toy_commands:count_facts")
    assert run("facts", db).stdout.count("\n") == 4


def test_every_module_of_commands_is_in_the_registry_under_its_name() -> None:
    modules = {path.stem for path in Path(commands.__path__[0]).glob("*.py")} - {"__init__"}
    places = {name: row.target.removeprefix(f"{commands.__name__}.") for name, row in REGISTRY.kinds.items()}
    assert {place.partition(":")[0] for place in places.values()} == modules
    for name, place in places.items():
        assert place.partition(":")[0].rstrip("_") == name.replace("-", "_")
        assert REGISTRY[name].group in GROUPS


def test_the_help_lists_commands_in_their_groups(run: Run) -> None:
    listed = run("--help").stdout
    headings = [f"{group}:\n" for group in GROUPS if group != OTHERS]
    assert sorted(headings, key=listed.index) == headings
    for name in REGISTRY.kinds:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and command.get_short_help_str(limit=200).endswith(".")


def test_the_examples_of_help_texts_are_commands_as_they_are() -> None:
    for name in REGISTRY.kinds:
        shown = 0
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for line in (command.epilog or "").splitlines():
            if not line.startswith("  neuraldb "):
                continue
            words = shlex.split(line)[1:]
            called = cli.get_command(click.Context(cli), words[0])
            assert called is not None
            with click.Context(called, info_name=words[0]) as context:
                called.parse_args(context, words[1:])
            shown += 1
        assert shown, f"{name} shows no example"


WITHOUT_TORCH: dict[str, list[str]] = {
    "--help": [],
    "facts": ["DB"],
    "info": ["DB"],
    "models": ["list"],
    "history": ["DB"],
    "remove": ["DB", "--id", "paris"],
    "rollback": ["DB", "--to", "1"],
    "compact": ["DB"],
    "verify": ["DB", "--deep"],
    "export": ["DB", "--out", "-"],
}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_commands_that_need_no_model_load_neither_torch_nor_transformers(run: Run, db: Path, name: str) -> None:
    if name == "rollback":  # to go back, there must be a later generation
        assert run("remove", db, "--id", "paris").exit_code == 0
    arguments = [name, *(str(db) if word == "DB" else word for word in WITHOUT_TORCH[name])]
    code = f"""
import sys
from neuraldb_faiss.cli.main import cli
cli({arguments!r}, prog_name="neuraldb", standalone_mode=False)
found = {{"torch", "transformers"}} & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
