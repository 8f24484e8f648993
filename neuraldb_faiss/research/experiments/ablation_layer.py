"""The layer: quality against the one that is edited."""

from __future__ import annotations

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.models import edit_defaults, layer_count
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.research.experiments.sweep import report
from neuraldb_faiss.runs import Run

DEFAULTS: dict[str, list[int]] = {"layers": []}  # none: the default, two before and two after it


def run(lab: Lab) -> Result:
    last = layer_count(lab.model, lab.config["build"].get("ffn_module")) - 1
    usual = edit_defaults(lab.model)[0].layer
    layers = lab.config["layers"] or [layer for layer in range(usual - 2, usual + 3) if 0 <= layer <= last]
    for layer in layers:
        if not 0 <= layer <= last:
            raise EvaluationError(f"layer {layer} is not in this model: it has 0 to {last}")
    points: list[tuple[float, Run]] = []
    for layer in layers:
        with lab.database(layer=layer) as db:
            points.append((layer, lab.evaluate(f"layer {layer}", lab.method("neuraldb", db), lab.facts())))
    return report({"neuraldb": points}, lab.base(), x="layer")
