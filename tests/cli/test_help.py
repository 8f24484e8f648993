"""Every command has help, is documented, and says so fast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from helpers.commands import Run
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.cli.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ["Several machines:", "Other options:"]
HEAVY = {"torch", "transformers", "faiss", "datasets", "numpy"}


@pytest.mark.parametrize("name", REGISTRY.kinds)
def test_every_command_and_option_has_help(run: Run, name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.name == name
    assert command.help and command.help.strip().endswith(".")
    for param in command.params:
        if isinstance(param, click.Option):
            assert param.help, f"{name} {param.opts[0]} has no help"
    done = run(name, "--help")
    assert done.exit_code == 0 and "Usage:" in done.stdout


def test_shared_options_mean_the_same(run: Run) -> None:
    """An option of one name is of one type everywhere (its help may say what it means for the command)."""
    seen: dict[str, str] = {}
    for name in REGISTRY.kinds:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        for param in command.params:
            if isinstance(param, click.Option) and param.opts[0] in (
                "--model",
                "--gamma",
                "--index",
                "--wait",
            ):
                assert seen.setdefault(param.opts[0], repr(param.type)) == repr(param.type)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in REGISTRY.kinds)])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from neuraldb_faiss.cli.main import cli
try:
    cli({arguments!r}, prog_name="neuraldb")
finally:
    sys.stderr.write(" ".join(set({sorted(HEAVY)!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout and done.stderr == ""


def test_help_imports_only_click() -> None:
    """Help is fast because it imports nothing else: of other projects click alone, and few modules in all."""
    code = """
import sys
before = set(sys.modules)
from neuraldb_faiss.cli.main import cli
try:
    cli(["--help"], prog_name="neuraldb")
finally:
    sys.stderr.write(" ".join(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = done.stderr.split()
    packages = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert packages == {"click", "neuraldb_faiss"}
    assert len(loaded) < 300, f"{len(loaded)} modules"


def test_version_names_what_matters(run: Run) -> None:
    lines = run("--version").stdout.splitlines()
    assert [line.split()[0].rstrip(":") for line in lines][:3] == ["neuraldb-faiss", "torch", "transformers"]
    assert lines[3].startswith("faiss")


def test_long_help_has_sections(run: Run) -> None:
    shown = run("build", "--help").stdout
    titles = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Facts:", "Model:", "Output:", "Solving:", "Gate and delivery:", "Index:", *OTHERS]
    command = cli.get_command(click.Context(cli), "build")
    assert command is not None
    for param in command.params:
        assert not isinstance(param, click.Option) or shown.count(f"  {param.opts[0]}") >= 1
    assert shown.partition("Other options:")[2].count("--") == 1 + shown.partition("Examples:")[2].count("--")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("buidl", "Did you mean build or rebuild?"),
        ("build f --ot x", "Did you mean"),
        ("bench lokup", "Did you mean lookup?"),
        ("experiment tabel1 --out x", "Did you mean table1?"),
        ("build f --model m --out d --residual pmett", "Did you mean pmet"),
        ("eval d --dataset conterfact --cases c --out r", "Did you mean counterfact?"),
        ("models gett demo", "Did you mean"),
    ],
)
def test_a_mistyped_name_is_told_with_the_right_one(run: Run, line: str, hint: str) -> None:
    done = run(*line.split())
    assert done.exit_code == 2 and hint in done.stderr, done.stderr


def test_a_mistyped_setting_of_an_experiment(run: Run) -> None:
    from neuraldb_faiss.errors import EvaluationError
    from neuraldb_faiss.research.experiments.lab import merged

    with pytest.raises(EvaluationError, match="unknown setting 'generation'.*Did you mean generations"):
        merged({}, {"generation": 3})


def test_a_folder_of_databases_is_no_database(run: Run, db: Path) -> None:
    """The databases inside are named; so are those beside a mistyped one."""
    folder = run("generate", db.parent, "x")
    assert folder.exit_code == 1 and f"it holds the databases {db}: name one of them" in folder.stderr
    typo = run("info", db.with_name("dp"))
    assert typo.exit_code == 1 and f"there is no such folder. Did you mean {db}?" in typo.stderr
    assert run("info", db.parent / "nowhere" / "db").stderr.rstrip().endswith("there is no such folder.")


def test_facts_that_are_not_found_are_looked_for(run: Run, db: Path) -> None:
    part = run("facts", db, "--subject", "eiffel")
    assert part.exit_code == 0 and part.stdout == ""
    assert "did you mean Eiffel Tower? --contains eiffel finds parts of names" in part.stderr
    assert "--contains Rome looks in prompts and targets too" in run("facts", db, "--subject", "Rome").stderr
    assert "No fact has that text" in run("facts", db, "--subject", "Atlantis").stderr
