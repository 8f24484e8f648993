"""Runs side by side: which belong together, their figures, and paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.datasets.registry import DATASETS
from neuraldb_faiss.research.evaluation.evaluate import BASE
from neuraldb_faiss.research.evaluation.metrics import METRICS
from neuraldb_faiss.research.evaluation.statistics import Estimate, differences, shown, summarise
from neuraldb_faiss.runs import Row, Run

HEADLINE = ("efficacy", "generalization", "specificity", "score", "fluency", "consistency")


@dataclass(frozen=True)
class Entry:
    """One line of a table: a run under a name, and its rows by case."""

    label: str
    method: str
    facts: int | None
    rows: Mapping[str, Row]


@dataclass(frozen=True)
class Column:
    """name: its head. metric: the rows' key. of: only rows of this task, where it is one of the harness'."""

    name: str
    metric: str
    of: str | None = None

    def rows(self, entry: Entry) -> dict[str, Row]:
        return {case: row for case, row in entry.rows.items() if row.get("of") == self.of}


@dataclass
class Comparison:
    """Runs on the same cases and model: a table of figures, and one of what NeuralDB has over each other run."""

    kind: str
    title: str
    about: str
    entries: list[Entry]
    columns: list[Column]
    estimates: dict[tuple[str, str], Estimate | None] = field(default_factory=dict)
    apart: dict[tuple[str, str], Estimate | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            for column in self.columns:
                rows, key = column.rows(entry), (entry.label, column.name)
                self.estimates[key] = summarise(list(rows.values()), [column.metric])[column.metric]
                if (reference := self.reference(entry)) is not None:
                    found = differences(column.rows(reference), rows, [column.metric])
                    self.apart[key] = found[column.metric]

    def reference(self, entry: Entry) -> Entry | None:
        """What an entry is compared with: NeuralDB with as many facts, or with the most where none has; None for
        NeuralDB itself, and where it is not among the runs."""
        ours = [one for one in self.entries if one.method == "neuraldb"]
        same = [one for one in ours if one.facts == entry.facts]
        found = next(iter(same or ours[-1:]), None)
        return None if found is entry else found

    @property
    def others(self) -> list[Entry]:
        """Those that are compared with a reference."""
        return [entry for entry in self.entries if self.reference(entry) is not None]

    def cases(self, entry: Entry) -> int:
        return max((len(column.rows(entry)) for column in self.columns), default=0)


def compare(runs: Sequence[Run], metrics: Sequence[str] | None = None) -> list[Comparison]:
    """Runs grouped by what they were measured on, each group a comparison.

    A run's own base_* columns stand in where no run of the base model is given.

    Args:
        metrics: the columns of CounterFact and zsRE; None for all that the runs have.

    Raises:
        EvaluationError: an unknown metric.
    """
    for name in metrics or ():
        if name not in METRICS:
            raise EvaluationError(f"unknown metric {name!r}: choose of {', '.join(METRICS)}")
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(_group(run), []).append(run)
    return [_compare(key, group, metrics) for key, group in groups.items()]


def _group(run: Run) -> tuple[str, ...]:
    told = run.identity
    names = ("kind", "model", "dataset", "file", "sha256", *_SETTINGS)
    return tuple(str(told.get(name, "")) for name in names)


# How cases are measured: runs that differ in one of these are not compared.
_SETTINGS = ("generations", "length", "seed", "quirks", "references_sha256",
             "num_fewshot", "limit", "apply_chat_template", "local_data")  # fmt: skip


def _compare(key: tuple[str, ...], runs: Sequence[Run], metrics: Sequence[str] | None) -> Comparison:
    kind, model, dataset, file, *_ = key
    entries = _entries(runs, kind)
    if kind == "lm-eval":
        return Comparison(kind, "General ability", model, entries, _task_columns(runs))
    known = dict.fromkeys(name for run in runs for name in run.identity["metrics"])
    columns = [Column(name, name) for name in METRICS if name in known and (metrics is None or name in metrics)]
    return Comparison(kind, f"{_title(dataset)}: {file}", model, entries, columns)


def _title(dataset: str) -> str:
    kind = DATASETS.kinds.get(dataset)
    return dataset if kind is None else kind.title


def _entries(runs: Sequence[Run], kind: str) -> list[Entry]:
    """NeuralDB first, the base model last."""
    entries = [Entry(label, run.method, run.identity.get("facts"), run.rows) for label, run in _labels(runs)]
    if kind == "eval" and not any(entry.method == "base" for entry in entries):
        columns: dict[str, Row] = {}
        for run in runs:
            columns |= {case: _base(row) for case, row in run.rows.items() if any(k.startswith(BASE) for k in row)}
        if columns:
            entries.append(Entry("base", "base", None, columns))
    rank = {"neuraldb": 0, "base": 2}
    return sorted(entries, key=lambda entry: (rank.get(entry.method, 1), entry.method, entry.facts or 0))


def _base(row: Row) -> Row:
    return {"case": row["case"], **{key.removeprefix(BASE): v for key, v in row.items() if key.startswith(BASE)}}


def _labels(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Each run's method, with what tells it from the other runs of that method."""
    plain = [_plain_label(run, len({r.identity.get("facts") for r in runs if r.method != "base"}) > 1) for run in runs]
    labels: list[tuple[str, Run]] = []
    for label, run in zip(plain, runs, strict=True):
        label = f"{label} ({run.path.stem})" if plain.count(label) > 1 else label
        while any(label == other for other, _ in labels):
            label += "'"  # the same file twice
        labels.append((label, run))
    return labels


def _plain_label(run: Run, facts: bool) -> str:
    if "label" in run.header:
        return str(run.header["label"])
    settings = run.identity.get("method_settings") or {}
    parts = [run.method]
    if facts and run.method != "base":
        parts.append(f"{run.identity.get('facts', 0):,} facts")
    if settings.get("batch"):
        parts.append(f"batches of {settings['batch']}")
    return ", ".join(parts)


def _task_columns(runs: Sequence[Run]) -> list[Column]:
    columns: dict[str, Column] = {}
    for run in runs:
        for row in run.rows.values():
            if "task" in row:
                means = [key for key, value in row.items() if isinstance(value, float)]
                metric = "acc" if "acc" in means else means[0] if means else ""
                if metric:
                    columns[row["task"]] = Column(row["task"], metric, row["task"])
    return list(columns.values())


def cell(column: Column, one: Estimate | None) -> str:
    """A figure with its interval, as text."""
    if one is None:
        return "n/a"
    return f"{shown(column.metric, one.value)} [{shown(column.metric, one.low)}, {shown(column.metric, one.high)}]"


def figures(comparison: Comparison) -> list[Row]:
    """Every figure as a row: method, facts, cases, metric, value, low, high."""
    return [
        {
            "label": entry.label, "method": entry.method, "facts": entry.facts, "metric": column.name,
            "cases": one.n, "value": one.value, "low": one.low, "high": one.high,
        }
        for entry in comparison.entries
        for column in comparison.columns
        if (one := comparison.estimates[entry.label, column.name]) is not None
    ]  # fmt: skip


def markdown(comparison: Comparison, columns: Iterable[Column] | None = None) -> str:
    """The table of figures, in Markdown."""
    chosen = list(columns or comparison.columns)
    lines = ["| method | cases | " + " | ".join(column.name for column in chosen) + " |"]
    lines.append("|---|---:|" + "---:|" * len(chosen))
    for entry in comparison.entries:
        cells = [cell(column, comparison.estimates[entry.label, column.name]) for column in chosen]
        lines.append(f"| {entry.label} | {comparison.cases(entry)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
