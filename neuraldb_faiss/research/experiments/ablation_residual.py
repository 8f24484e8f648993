"""How residuals are solved: quality, and what an edit does to its subject's other relations."""

from __future__ import annotations

from typing import Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.research.experiments.table1 import report

DEFAULTS: dict[str, Any] = {
    # By label, how databases are built otherwise than the setting "build" says: {kl_factor = 0.25}, say.
    "variants": {"default": {}},
}


def run(lab: Lab) -> Result:
    runs = []
    for label, build in lab.config["variants"].items():
        if not isinstance(build, dict):
            raise EvaluationError(f"variant {label!r} is {build!r}: give build options, as in {{kl_factor = 0.25}}")
        with lab.database(name=label, **build) as db:
            runs.append(lab.evaluate(label, lab.method("neuraldb", db), lab.facts()))
    return report([*runs, lab.base()])
