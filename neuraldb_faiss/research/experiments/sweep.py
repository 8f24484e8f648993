"""A sweep: NeuralDB with one setting at several values, beside the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.comparison import compare, figures, markdown
from neuraldb_faiss.research.evaluation.statistics import Estimate
from neuraldb_faiss.research.experiments.lab import Result
from neuraldb_faiss.runs import Run

PLOTTED = ("efficacy", "generalization", "specificity", "score")


def report(series: Mapping[str, Sequence[tuple[float, Run]]], base: Run, *, x: str) -> Result:
    """Table and lines over the swept value; `series` holds (value, run) by the series' name."""
    runs = [run for points in series.values() for _, run in points]
    (one,) = compare([*runs, base])
    drawn = {}
    for column in one.columns:
        if column.name not in PLOTTED:
            continue
        lines: dict[str, list[tuple[float, Estimate]]] = {}
        for name, points in series.items():
            for value, run in points:
                found = one.estimates[str(run.header["label"]), column.name]
                if found is not None:
                    lines.setdefault(name, []).append((value, found))
        level = one.estimates["base", column.name]
        values = [value for points in series.values() for value, _ in points]
        if level is not None:
            lines["base"] = [(min(values), level), (max(values), level)]
        axis, percent = plots.metric_axis(column.metric)
        drawn[column.name] = plots.lines(lines, x=x, y=axis, percent=percent)
    return Result(figures(one), f"## {one.title}\n\n{one.about}\n\n{markdown(one)}", drawn)
