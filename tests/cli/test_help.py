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
