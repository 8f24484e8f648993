"""Zeros instead of residuals: a database of keys only, to measure gates and lookups."""

from __future__ import annotations

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.solver.objectives.base import Evaluation, Objective, Step


class Zeros(Objective):
    """Nothing is solved."""

    solves = False

    def evaluate(self, step: Step, config: ResidualConfig) -> Evaluation:
        """Never called."""
        raise NotImplementedError("nothing is solved for the objective 'none'")
