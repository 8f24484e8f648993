"""A package of somebody else's, installed while a test runs: a module, and entry points that name rows in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

from neuraldb_faiss.registry import Registry


@contextmanager
def installed(folder: Path, name: str, source: str, registry: Registry[Any], *rows: str) -> Iterator[None]:
    """Inside, `source` is the module `name`, whose attributes `rows` are entry points of the registry's group."""
    site = folder / f"site-{name}"
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(dedent(source), encoding="utf-8")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    points = "\n".join(f"{row} = {name}:{row}" for row in rows)
    (info / "entry_points.txt").write_text(f"[{registry.group}]\n{points}\n", encoding="utf-8")
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    registry.__dict__.pop("kinds", None)  # read anew
    try:
        yield
    finally:
        sys.path.remove(str(site))
        sys.modules.pop(name, None)
        registry.__dict__.pop("kinds", None)
