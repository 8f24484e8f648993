"""The notebook runs from top to bottom, and says what its committed outputs say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"


def outputs(notebook: Any) -> list[str]:
    """What each code cell printed, numbers with a point left out: cosines differ in their last digit by machine."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            texts = ["".join(one.get("text", "")) for one in cell["outputs"]]
            found.append(re.sub(r"-?\d+\.\d+", "#", "".join(texts)))
    return found


def committed() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def test_its_outputs_are_those_of_a_whole_run() -> None:
    notebook = committed()
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert {one["output_type"] for cell in cells for one in cell["outputs"]} == {"stream"}  # no error, no warning
    assert {one["name"] for cell in cells for one in cell["outputs"]} == {"stdout"}
    assert not re.search(r"/(home|root|tmp|work|Users)\b", json.dumps(notebook))
    told = "\n".join(outputs(notebook))
    for words in ("Rembrandt", "pianos", "fires: Japan -> Lagos", "The capital of Japan is Oslo", "generation 2"):
        assert words in told


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_gives_its_committed_outputs(demo_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel is a process of its own
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=1500, kernel_name="python3", resources=where).execute()
    assert outputs(notebook) == outputs(committed())
