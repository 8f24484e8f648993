"""The gate: quality against γ, for each guard."""

from __future__ import annotations

from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.research.experiments.sweep import report
from neuraldb_faiss.runs import Run

DEFAULTS = {"gammas": [0.35, 0.45, 0.55, 0.6, 0.65, 0.7, 0.75], "guards": ["subject", "none"]}


def run(lab: Lab) -> Result:
    series: dict[str, list[tuple[float, Run]]] = {}
    with lab.database() as db:
        for guard in lab.config["guards"]:
            for gamma in lab.config["gammas"]:
                method = lab.method("neuraldb", db, gamma=gamma, guard=guard)
                found = lab.evaluate(f"guard {guard}, gamma {gamma:g}", method, lab.facts())
                series.setdefault(f"guard {guard}", []).append((gamma, found))
    return report(series, lab.base(), x="γ")
