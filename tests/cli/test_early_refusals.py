"""What is wrong is told before torch is imported or a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from neuraldb_faiss.research.benchmarks.start import REFUSALS, arguments, places


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return places(tmp_path_factory.mktemp("places"))


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_torch_is_imported(name: str, place: dict[str, str], tmp_path: Path) -> None:
    line, told = REFUSALS[name]
    (tmp_path / "notes.txt").touch()  # so that the folder itself can be no new database
    code = f"""
import sys
from neuraldb_faiss.cli.main import cli
try:
    cli({arguments(line, place)!r}, prog_name="neuraldb")
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    status, heavy = done.stdout.split()
    assert told in done.stderr and status in "12" and heavy == "False", done.stderr
    assert not (tmp_path / "new").exists()
