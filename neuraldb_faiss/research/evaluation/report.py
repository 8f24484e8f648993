"""One self-contained page of runs: tables with intervals, differences, plots, and how each run was made."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.extras import extra
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.comparison import HEADLINE, Column, Comparison, Entry, cell, compare
from neuraldb_faiss.research.evaluation.metrics import METRICS
from neuraldb_faiss.research.evaluation.results import WIDE, Draw, ResultFile, Results, read_results
from neuraldb_faiss.runs import Run
from neuraldb_faiss.store import atomic, files


@dataclass(frozen=True)
class Report:
    """A page that was written: how many runs, their comparisons, other files of results, and all its plots by name."""

    runs: int
    comparisons: list[Comparison]
    files: list[ResultFile]
    plots: Mapping[str, str]


def write_report(
    paths: Sequence[str | Path], out: str | Path, metrics: Sequence[str] | None = None, *, title: str = "Evaluation",
    draw: Draw = lambda name, rows: None,
) -> Report:  # fmt: skip
    """Write the page `out` about the runs and the rows in `paths`, which are files or folders of results.

    The page is written under another name and put in place when it is whole.

    Args:
        draw: see `read_results`.

    Raises:
        EvaluationError: nothing is named, a file that is neither a run nor rows, an unknown metric, a page that cannot
            be written.
    """
    if not paths:
        raise EvaluationError("name at least one run (a file that `neuraldb eval` wrote), or a folder of results")
    found = read_results(paths, draw)
    comparisons = compare(found.runs, metrics)
    sections = [_section(one) for one in comparisons]
    text = _page(title, found, sections)
    place = Path(out)
    try:
        files.ensure_folder(place.parent)
        atomic.write_file(place, text.encode())
    except OSError as error:
        raise EvaluationError(f"{out} cannot be written: {error.strerror}") from None
    drawn = {name: plot for one in found.files for name, plot in one.plots.items()}
    drawn |= {name: plot for one in sections for name, plot in one["plots"].items()}
    return Report(len(found.runs), comparisons, found.files, drawn)


def write_plots(report: Report, folder: Path) -> list[Path]:
    """Put each plot in a folder as NAME.svg; their paths. Raises EvaluationError where one cannot be written."""
    paths = []
    try:
        files.ensure_folder(folder)
        for name, plot in report.plots.items():
            paths.append(folder / f"{name}.svg")
            atomic.write_file(paths[-1], plot.encode())
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written: {error.strerror}") from None
    return paths


def _page(title: str, found: Results, sections: Sequence[Mapping[str, Any]]) -> str:
    with extra("eval"):
        from jinja2 import Environment, PackageLoader
    environment = Environment(loader=PackageLoader("neuraldb_faiss.research.evaluation", ""), autoescape=True)
    template = environment.get_template("report.html")
    return template.render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M"),
        sections=sections,
        files=found.files,
        runs=[_run(run) for run in found.runs],
    )


def _section(one: Comparison) -> dict[str, Any]:
    headline = [column for column in one.columns if column.name in HEADLINE or one.kind == "lm-eval"]
    rest = [column for column in one.columns if column not in headline]
    parts = [some[at : at + WIDE] for some in (headline, rest) for at in range(0, len(some), WIDE)]
    tables = [_table(one, part) for part in parts]
    return {
        "title": one.title,
        "about": one.about,
        "tables": tables,
        "differences": [_differences(one, part) for part in parts if one.others],
        "plots": _plots(one, headline),
    }


def _table(one: Comparison, columns: Sequence[Column]) -> dict[str, Any]:
    rows = []
    for entry in one.entries:
        cells = [_cell(column, one, entry) for column in columns]
        rows.append({"label": entry.label, "method": entry.method, "cases": one.cases(entry), "cells": cells})
    return {"columns": [_head(column) for column in columns], "rows": rows}


def _head(column: Column) -> dict[str, str]:
    return {"name": column.name, "about": METRICS[column.name].about if column.name in METRICS else ""}


def _cell(column: Column, one: Comparison, entry: Entry) -> dict[str, str]:
    value, _, interval = cell(column, one.estimates[entry.label, column.name]).partition(" ")
    return {"value": value, "interval": interval}


def _differences(one: Comparison, columns: Sequence[Column]) -> dict[str, Any]:
    rows = []
    for entry in one.others:
        cells = []
        for column in columns:
            found = one.apart[entry.label, column.name]
            value, _, interval = cell(column, found).partition(" ")
            sure = found is not None and (found.low > 0 or found.high < 0)
            cells.append({"value": value, "interval": interval, "sure": sure})
        reference = one.reference(entry)
        assert reference is not None  # or it were not among the others
        rows.append({"label": f"{reference.label} − {entry.label}", "cells": cells})
    return {"columns": [_head(column) for column in columns], "rows": rows}


def _plots(one: Comparison, columns: Sequence[Column]) -> dict[str, str]:
    """A panel a metric with every method; where a method was run with several numbers of facts, lines over them too."""
    shares = [column for column in columns if column.name not in ("fluency",)]
    series = {entry.label: [one.estimates[entry.label, c.name] for c in shares] for entry in one.entries}
    drawn: dict[str, str] = {}
    if shares and any(found is not None for own in series.values() for found in own):
        drawn["tasks" if one.kind == "lm-eval" else "metrics"] = plots.dots([column.name for column in shares], series)
    counts = {entry.facts for entry in one.entries if entry.facts}
    for column in columns if len(counts) > 1 else ():
        points: dict[str, list[Any]] = {}
        for entry in one.entries:
            found = one.estimates[entry.label, column.name]
            if entry.facts and found is not None:
                points.setdefault(entry.method, []).append((entry.facts, found))
        if points:
            axis, percent = plots.metric_axis(column.name)
            drawn[column.name] = plots.lines(points, x="facts", y=axis, percent=percent)
    return drawn


def _run(run: Run) -> dict[str, Any]:
    header = dict(run.header)
    return {
        "path": str(run.path),
        "rows": len(run.rows),
        "command": header.get("command", ""),
        "started": header.get("started", ""),
        "hardware": header.get("hardware", {}),
        "versions": header.get("versions", {}),
        "identity": dict(run.identity),
    }
