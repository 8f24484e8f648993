"""The documentation's site: it builds without a warning, and its reference holds every public name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import neuraldb_faiss
from neuraldb_faiss.cli.registry import REGISTRY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_reference_holds_every_public_name_and_method(site: Path) -> None:
    page = (site / "python" / "index.html").read_text(encoding="utf-8")
    for name in ("Fact", "NeuralDB", "build", "merge"):
        one = getattr(neuraldb_faiss, name)
        path = f"{one.__module__}.{name}"
        assert f'id="{path}"' in page, name
        if isinstance(one, type):
            for member in vars(one):
                assert member.startswith("_") or f'id="{path}.{member}"' in page, f"{name}.{member}"


def test_the_command_line_page_holds_every_command(site: Path) -> None:
    page = (site / "cli" / "index.html").read_text(encoding="utf-8")
    for name in REGISTRY.kinds:
        assert f'id="neuraldb-{name}"' in page, name
