"""docs/python.md is what scripts/gen_python_docs.py makes of the package."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import neuraldb_faiss

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_python_docs", ROOT / "scripts" / "gen_python_docs.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType, page: Callable[[str], str]) -> None:
    assert page("python.md") == script.markdown(), "stale: run scripts/gen_python_docs.py"


def test_every_public_name_is_there(page: Callable[[str], str]) -> None:
    text = page("python.md")
    for name in neuraldb_faiss.__all__:
        assert f"\n## {name}\n" in text or name in ("__version__", "NeuralDBError"), name
        one = getattr(neuraldb_faiss, name)
        if isinstance(one, type) and name != "NeuralDBError":
            for member in list(vars(one)):
                known = f"**`{name}.{member}`**" in text or member in one.__annotations__
                assert known or member.startswith("_"), f"{name}.{member}"


def test_sections_of_a_docstring_become_lists(script: ModuleType) -> None:
    def one(a: int, *, b: str = "x", **more: float) -> None:
        """Do it.

        Args:
            a: how
                often.
            b: what.

        Raises:
            ValueError: never.
        """

    assert script._signature("one", one) == "one(a: int, *, b: str = 'x', **more: float) -> None"
    assert script._prose(one) == [
        "Do it.", "", "*Args*", "", "- `a`: how often.", "- `b`: what.", "",
        "*Raises*", "", "- `ValueError`: never.", "",
    ]  # fmt: skip
