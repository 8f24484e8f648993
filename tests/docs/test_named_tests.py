"""Tests that pages name exist, and every promise in a table of promises names one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(tests/[\w./-]+)(?:::(\w+))?`")
PAGES = [path for place in ("*.md", "docs/*.md", "examples/*.md", "indexes/*.md") for path in ROOT.glob(place)]
PROMISES = ("docs/durability.md", "docs/serving.md")


@cache
def functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(text: str) -> list[str]:
    """The tests named in a page that are not there."""
    found = []
    for name, function in NAMED.findall(text):
        path = ROOT / name
        there = path.exists() if not function else path.is_file() and function in functions(path)
        if not there:
            found.append(f"{name}::{function}" if function else name)
    return found


def test_every_named_test_exists() -> None:
    assert {ROOT / name for name in ("SECURITY.md", *PROMISES)} <= set(PAGES)
    lost = {page.name: names for page in PAGES if (names := missing(page.read_text(encoding="utf-8")))}
    assert lost == {}


def test_a_lost_test_is_noticed() -> None:
    assert missing("`tests/docs/test_named_tests.py::test_a_lost_test_is_noticed`, `tests/docs`") == []
    text = "`tests/docs/test_gone.py` `tests/docs/test_named_tests.py::test_gone` `tests/docs/test_gone.py::test_x`"
    assert len(missing(text)) == 3


@pytest.mark.parametrize("page", PROMISES)
def test_every_promise_names_a_test(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    table = re.search(r"^\| promise \| test \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    bare = [row for row in table[1].splitlines() if not NAMED.search(row.rsplit(" | ", 1)[1])]
    assert bare == []
