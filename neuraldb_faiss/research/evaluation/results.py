"""What a folder of results holds: runs, rows of figures, other rows, JSON, pictures; as tables that fit a page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.metrics import METRICS
from neuraldb_faiss.research.evaluation.statistics import Estimate, shown
from neuraldb_faiss.runs import Row, Run, read_run

WIDE = 6  # columns of a table, beside those that name its rows
_FIGURE = frozenset(("label", "metric", "value", "low", "high"))
_SWEPT = re.compile(r"(?:(?P<series>.+), )?(?P<what>[a-z]+) (?P<value>[\d.]+)")
_NOT_PLOTTED = ("fluency",)
Draw = Callable[[str, Sequence[Row]], Mapping[str, str] | None]


@dataclass(frozen=True, slots=True)
class Table:
    """heads: of the columns; the first `names` of them name the rows. rows: texts, each with a small text under it."""

    heads: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str], ...], ...]
    names: int = 1

    def parts(self) -> Iterator[Table]:
        """Tables of WIDE columns beside the naming ones, which come again in each."""
        for first in range(self.names, max(len(self.heads), self.names + 1), WIDE):
            part = slice(first, first + WIDE)
            heads = (*self.heads[: self.names], *self.heads[part])
            yield Table(heads, tuple((*row[: self.names], *row[part]) for row in self.rows), self.names)


@dataclass
class ResultFile:
    """One file of results: its tables, plots as SVG by name, and pictures as data URLs by name."""

    path: Path
    tables: list[Table] = field(default_factory=list)
    plots: Mapping[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    text: str = ""


@dataclass
class Results:
    """Runs, which are compared with one another, and all other files."""

    runs: list[Run] = field(default_factory=list)
    files: list[ResultFile] = field(default_factory=list)


def read_results(paths: Sequence[str | Path], draw: Draw) -> Results:
    """The files at these paths, and of folders those that lie in them.

    Args:
        draw: plots of an experiment's rows, given its name, which its folder has; None where it has none of its own.

    Raises:
        EvaluationError: nothing there, or a file that is neither a run, nor rows, nor JSON.
    """
    found = Results()
    for path in map(Path, paths):
        if path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.suffix in (".jsonl", ".json", ".svg", ".md")]
            if not inside:
                raise EvaluationError(f"{path} holds no results: no .jsonl, .json, .svg or .md file is in it")
            _read_folder(path.resolve().name, inside, found, draw)
        else:
            _read_file(path.resolve().parent.name, path, found, draw)
    return found


def _read_folder(name: str, inside: Sequence[Path], found: Results, draw: Draw) -> None:
    before = len(found.files)
    for path in sorted(inside, key=lambda one: (one.suffix != ".jsonl", one.suffix != ".json", one.name)):
        if path.suffix in (".jsonl", ".json"):
            _read_file(name, path, found, draw)
    drawn = {plot for one in found.files[before:] for plot in one.plots}
    for path in inside:
        if path.suffix == ".svg" and path.stem not in drawn:
            data = base64.b64encode(path.read_bytes()).decode()
            found.files.append(ResultFile(path, pictures={path.stem: f"data:image/svg+xml;base64,{data}"}))
        elif path.name == "README.md":
            found.files.append(ResultFile(path, text=path.read_text(encoding="utf-8")))


def _read_file(folder: str, path: Path, found: Results, draw: Draw) -> None:
    if path.suffix == ".json":
        found.files.append(ResultFile(path, list(_json_tables(_parsed(path, path.read_bytes())))))
        return
    rows = _rows(path)
    if rows is None:
        found.runs.append(read_run(path))
        return
    own = draw(folder, rows) if path.stem == "rows" else None
    if all(row.keys() >= _FIGURE for row in rows):
        found.files.append(ResultFile(path, [figure_table(rows)], own or figure_plots(rows)))
    else:
        found.files.append(ResultFile(path, list(_row_tables(rows)), own or {}))


def _rows(path: Path) -> list[Row] | None:
    """The rows of a file; None of a run's."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}") from None
    if data.startswith(b'{"neuraldb_run"'):
        return None
    rows = [_parsed(f"{path}, line {number}", line) for number, line in enumerate(data.splitlines(), 1)]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise EvaluationError(f"{path} holds neither a run nor rows of results: a JSON object a line")
    return rows


def _parsed(where: Any, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise EvaluationError(f"{where}: not valid JSON ({error})") from None


# ---- rows of figures: a label, a metric, a value with its interval


def figure_table(rows: Sequence[Row]) -> Table:
    """A row a label, a column a metric."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    by_name = {(_name(row), row["metric"]): row for row in rows}
    lines = []
    for name in dict.fromkeys(_name(row) for row in rows):
        cells = [by_name.get((name, metric)) for metric in metrics]
        lines.append(((name, ""), *(_cell(metric, one) for metric, one in zip(metrics, cells, strict=True))))
    return Table(("", *metrics), tuple(lines))


def figure_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Lines over what was swept (a value at the end of the labels, or the number of facts), a plot for each metric; one
    plot with a panel a metric else."""
    metrics = [name for name in dict.fromkeys(row["metric"] for row in rows) if _drawn(name)]
    swept = _swept(rows)
    if swept is not None:
        what, places = swept
        return {metric: _lines(rows, metric, what, places) for metric in metrics if _is_headline(metric, metrics)}
    shares = [metric for metric in metrics if metric not in METRICS or METRICS[metric].percent]
    headline = [metric for metric in shares if _is_headline(metric, metrics)]
    by_name = {(_name(row), row["metric"]): row for row in rows}
    names = list(dict.fromkeys(_name(row) for row in rows))
    series = {
        name: [_estimate(one) if (one := by_name.get((name, metric))) else None for metric in headline]
        for name in names
    }
    tasks = not any(metric in METRICS for metric in metrics)
    return {"tasks" if tasks else "metrics": plots.dots(headline, series)} if headline else {}


def _lines(rows: Sequence[Row], metric: str, what: str, places: Mapping[str, tuple[str, float]]) -> str:
    series: dict[str, list[tuple[float, Estimate]]] = {}
    every = [value for _, value in places.values()]
    for row in rows:
        if row["metric"] == metric:
            name = _name(row)
            if name in places:
                of, value = places[name]
                series.setdefault(of, []).append((value, _estimate(row)))
            else:  # the base model has no such value: a level line
                series[name] = [(min(every), _estimate(row)), (max(every), _estimate(row))]
    axis, percent = plots.metric_axis(metric)
    return plots.lines(series, x=what, y=axis, percent=percent)


def _swept(rows: Sequence[Row]) -> tuple[str, dict[str, tuple[str, float]]] | None:
    """What was swept, and for each label its series and its value; None where nothing was."""
    labels = {_name(row): row for row in rows if row.get("method") != "base" and row["label"] != "base"}
    found = {name: match for name, row in labels.items() if (match := _SWEPT.fullmatch(row["label"]))}
    swept = {match["what"] for match in found.values()}
    if len(found) == len(labels) > 2 and len(swept) == 1 and "setting" not in rows[0]:
        (what,) = swept
        return what, {name: (match["series"] or what, float(match["value"])) for name, match in found.items()}
    counts = {row["facts"] for row in labels.values() if row.get("facts")}
    if len(counts) > 1 and "setting" not in rows[0] and all(row.get("method") for row in labels.values()):
        return "facts", {name: (row["method"], float(row["facts"])) for name, row in labels.items() if row.get("facts")}
    return None


def _name(row: Row) -> str:
    return f"{row['setting']}: {row['label']}" if "setting" in row else str(row["label"])


def _drawn(metric: str) -> bool:
    return metric not in _NOT_PLOTTED


def _is_headline(metric: str, metrics: Sequence[str]) -> bool:
    """Whether it is among the few that are drawn: the paper's, where they were measured."""
    headline = ("efficacy", "generalization", "specificity", "score", "consistency")
    return metric in headline or not set(headline) & set(metrics)


def _estimate(row: Row) -> Estimate:
    return Estimate(row["value"], row["low"], row["high"], row.get("cases", 0))


def _cell(metric: str, row: Row | None) -> tuple[str, str]:
    if row is None:
        return "", ""
    return shown(metric, row["value"]), f"[{shown(metric, row['low'])}, {shown(metric, row['high'])}]"


# ---- other rows and JSON


def _row_tables(rows: Sequence[Row]) -> Iterator[Table]:
    """A table for each set of columns that rows have."""
    flat = [dict(_flattened(row)) for row in rows]
    kinds: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in flat:
        kinds.setdefault(tuple(row), []).append(row)
    for heads, some in kinds.items():
        named = 0
        while named < min(3, len(heads) - 1) and not all(_is_number(row[heads[named]]) for row in some):
            named += 1
        yield Table(heads, tuple(tuple((row[head], "") for head in heads) for row in some), max(1, named))


def _json_tables(value: Any) -> Iterator[Table]:
    """Lists of objects as tables of their own, all else as names and values."""
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        yield from _row_tables(value)
        return
    lists = {}
    if isinstance(value, dict):
        lists = {name: one for name, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)}
        value = {name: one for name, one in value.items() if name not in lists}
    plain = list(_flattened(value))
    if plain:
        yield Table(("name", "value"), tuple(((name, ""), (text, "")) for name, text in plain))
    for own in lists.values():
        yield from _row_tables(own)


def _flattened(value: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """(name, text) of what an object holds, names of inner objects joined by points."""
    if isinstance(value, Mapping) and value:
        for name, one in value.items():
            yield from _flattened(one, f"{before}.{name}" if before else str(name))
    else:
        yield before, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return json.dumps(value, ensure_ascii=False)


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[\d,.]+(e-?\d+)?", text))
