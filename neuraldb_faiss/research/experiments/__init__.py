"""The paper's tables and figures, on whatever model and facts are given: one module an experiment.

A module has ABOUT (one line), DEFAULTS (its settings beside `lab.COMMON`) and `run(lab) -> Result`. It is loaded when
it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from neuraldb_faiss.errors import EvaluationError

EXPERIMENTS = {
    "gate": "gate",
    "gate-variants": "gate_variants",
    "bare-names": "bare_names",
    "many-facts": "many_facts",
    "contexts": "contexts",
    "perplexity": "perplexity",
    "table1": "table1",
    "budgets": "budgets",
    "ablation-gamma": "ablation_gamma",
    "ablation-layer": "ablation_layer",
    "ablation-residual": "ablation_residual",
    "multilayer": "multilayer",
    "weights": "weights",
    "overhead": "overhead",
    "scaling": "scaling",
}


def experiment(name: str) -> Any:
    """The module of an experiment. Raises EvaluationError for an unknown name."""
    if name not in EXPERIMENTS:
        raise EvaluationError(f"unknown experiment {name!r}: choose one of {', '.join(EXPERIMENTS)}")
    return import_module(f"{__name__}.{EXPERIMENTS[name]}")
