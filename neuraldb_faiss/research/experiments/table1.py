"""Table 1: every method on the same facts, with all metrics."""

from __future__ import annotations

from neuraldb_faiss.research.baselines.settings import BATCHED
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.comparison import HEADLINE, compare, figures, markdown
from neuraldb_faiss.research.evaluation.methods import METHODS, base
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Run

DEFAULTS = {
    "methods": list(METHODS),
    # Facts that a weight editor writes at a time: 0 is all in one step. The ranking depends on it.
    "batches": [0, 100],
}


def run(lab: Lab) -> Result:
    facts = lab.facts()
    runs: list[Run] = []
    with lab.database() as db:
        for name, batch in _wanted(lab):
            if name == "base":
                runs += [lab.base(), *_some(lab.general("base", base(), ()))]
                continue
            label = f"{name}, batches of {batch}" if batch else name
            method = lab.method(name, db, **({"batch": batch} if batch else {}))
            runs += [lab.evaluate(label, method, facts), *_some(lab.general(label, method, facts))]
    return report(runs)


def report(runs: list[Run]) -> Result:
    """Tables, figures and bars of runs on one set of cases, with general ability where there is some."""
    comparisons = compare(runs)
    table = "\n".join(f"## {one.title}\n\n{one.about}\n\n{markdown(one)}" for one in comparisons)
    drawn = {}
    for one in comparisons:
        columns = [c for c in one.columns if one.kind == "lm-eval" or (c.name in HEADLINE and c.name != "fluency")]
        series = {entry.label: [one.estimates[entry.label, c.name] for c in columns] for entry in one.entries}
        name = "tasks" if one.kind == "lm-eval" else "metrics"
        drawn[name] = plots.dots([column.name for column in columns], series)
    return Result([row for one in comparisons for row in figures(one)], table, drawn)


def _wanted(lab: Lab) -> list[tuple[str, int]]:
    """Methods with the facts a batch; a batch that holds all facts is one step."""
    wanted = []
    for name in lab.config["methods"]:
        batches = lab.config["batches"] if name in BATCHED else [0]
        sizes = dict.fromkeys(0 if batch >= lab.config["facts"] else batch for batch in batches)
        wanted += [(name, batch) for batch in sizes]
    return wanted


def _some(run: Run | None) -> list[Run]:
    return [] if run is None else [run]
