"""How many facts are solved and staged together, set for one test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neuraldb_faiss.solver.objectives.registry import REGISTRY


def set_piece(monkeypatch: pytest.MonkeyPatch, facts: int, residual: str = "memit") -> None:
    """A killed build loses one such piece at most, so a test of resuming wants small ones."""
    monkeypatch.setitem(REGISTRY.kinds, residual, replace(REGISTRY[residual], piece=facts))
