"""Solver: keys (equation 20), residuals (equation 21), and the contexts both are made behind.

Names are loaded when first used, so that the registry of objectives does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuraldb_faiss.config import ResidualConfig
    from neuraldb_faiss.solver.keys import KeyRows, compute_keys
    from neuraldb_faiss.solver.outcome import FactOutcome, Solved
    from neuraldb_faiss.solver.prefixes import generate_prefixes
    from neuraldb_faiss.solver.residuals import solve_residuals

__all__ = [
    "FactOutcome",
    "KeyRows",
    "ResidualConfig",
    "Solved",
    "compute_keys",
    "generate_prefixes",
    "solve_residuals",
]

_HOMES = {
    "FactOutcome": ".outcome",
    "KeyRows": ".keys",
    "ResidualConfig": "neuraldb_faiss.config",
    "Solved": ".outcome",
    "compute_keys": ".keys",
    "generate_prefixes": ".prefixes",
    "solve_residuals": ".residuals",
}


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
