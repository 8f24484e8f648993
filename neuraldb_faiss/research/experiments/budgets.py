"""Figures 1 and 3, tables 2 and 6: quality and general ability against the number of facts."""

from __future__ import annotations

from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.comparison import compare, figures, markdown
from neuraldb_faiss.research.evaluation.methods import base
from neuraldb_faiss.research.evaluation.statistics import Estimate
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Run

DEFAULTS = {
    "methods": ["neuraldb", "base", "memit", "alphaedit"],
    "counts": [50, 100, 200],
    "batch": 100,  # facts that a weight editor writes at a time; 0 is all in one step
    "plotted": ["efficacy", "generalization", "specificity", "score"],
}


def run(lab: Lab) -> Result:
    counts = sorted(lab.config["counts"])
    runs: list[Run] = []
    for count in counts:
        facts = lab.facts(count)
        with lab.database(count) as db:
            for name in lab.config["methods"]:
                if name == "base":
                    continue
                settings = {"batch": lab.config["batch"]} if _batched(name, lab.config["batch"], count) else {}
                method = lab.method(name, db, **settings)
                label = f"{name}, {count} facts"
                runs.append(lab.evaluate(label, method, facts, count))
                tasks = lab.general(label, method, facts)
                runs += [tasks] if tasks is not None else []
    if "base" in lab.config["methods"]:
        runs.append(lab.base(counts[-1]))
        tasks = lab.general("base", base(), ())
        runs += [tasks] if tasks is not None else []
    comparisons = compare(runs)
    drawn: dict[str, str] = {}
    for one in comparisons:
        for column in one.columns:
            if one.kind == "eval" and column.name not in lab.config["plotted"]:
                continue
            series: dict[str, list[tuple[float, Estimate]]] = {}
            for entry in one.entries:
                found = one.estimates[entry.label, column.name]
                if found is not None:
                    # the base model knows no facts: a level line
                    places = [entry.facts] if entry.facts else [counts[0], counts[-1]]
                    series.setdefault(entry.method, []).extend((place, found) for place in places)
            axis, percent = plots.metric_axis(column.metric)
            drawn[column.name] = plots.lines(series, x="facts", y=f"{column.name}: {axis}", percent=percent)
    table = "\n".join(f"## {one.title}\n\n{one.about}\n\n{markdown(one)}" for one in comparisons)
    return Result([row for one in comparisons for row in figures(one)], table, drawn)


def _batched(name: str, batch: int, count: int) -> bool:
    from neuraldb_faiss.research.baselines.settings import BATCHED

    return name in BATCHED and 0 < batch < count
