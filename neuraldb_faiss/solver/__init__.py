"""Editing: keys (equation 20), residuals (equation 21) and the texts both need."""

from __future__ import annotations

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.solver.keys import KeyRows, compute_keys
from neuraldb_faiss.solver.prefixes import generate_prefixes
from neuraldb_faiss.solver.residuals import FactOutcome, Solved, solve_residuals

__all__ = [
    "FactOutcome",
    "KeyRows",
    "ResidualConfig",
    "Solved",
    "compute_keys",
    "generate_prefixes",
    "solve_residuals",
]
