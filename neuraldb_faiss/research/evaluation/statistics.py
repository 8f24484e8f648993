"""What rows add up to: means with 95 % bootstrap intervals, and paired differences of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuraldb_faiss.extras import extra
from neuraldb_faiss.research.evaluation.metrics import METRICS, PARTS

CONFIDENCE = 0.95
RESAMPLES = 2000
_Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure over n cases and its 95 % interval; an interval of one case is the figure itself."""

    value: float
    low: float
    high: float
    n: int


def summarise(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], *, prefix: str = ""
) -> dict[str, Estimate | None]:
    """Each metric over the rows; None where no row has it. `prefix` reads base_* columns instead."""
    found: dict[str, Estimate | None] = {}
    for name in names:
        table = _table(rows, name, prefix)
        found[name] = None if table is None else _estimate(name, table)
    return found


def proportion(hits: int, n: int) -> Estimate:
    """hits of n, with Wilson's interval."""
    with extra("eval"):
        from scipy.stats import binomtest
    if not n:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def differences(
    left: Mapping[str, Mapping[str, Any]], right: Mapping[str, Mapping[str, Any]], names: Sequence[str], *,
    left_prefix: str = "", right_prefix: str = "",
) -> dict[str, Estimate | None]:  # fmt: skip
    """Left minus right over the cases that both have, resampled together: a paired difference.

    Args:
        left, right: rows by case.
    """
    shared = [case for case in left if case in right]
    found: dict[str, Estimate | None] = {}
    for name in names:
        tables = _tables(
            [left[case] for case in shared], [right[case] for case in shared], name, left_prefix, right_prefix
        )
        found[name] = None if tables is None else _difference(name, *tables)
    return found


def _columns(name: str, prefix: str) -> list[str]:
    return [prefix + part for part in (PARTS if name == "score" else (name,))]


def _table(rows: Sequence[Mapping[str, Any]], name: str, prefix: str) -> _Array | None:
    """float64 [columns, cases that have all of them]; None where none has."""
    columns = _columns(name, prefix)
    kept = [[row[c] for c in columns] for row in rows if all(row.get(c) is not None for c in columns)]
    return np.array(kept, np.float64).T if kept else None


def _tables(
    left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]], name: str, l_prefix: str, r_prefix: str
) -> tuple[_Array, _Array] | None:
    l_columns, r_columns = _columns(name, l_prefix), _columns(name, r_prefix)
    kept = [
        ([a[c] for c in l_columns], [b[c] for c in r_columns])
        for a, b in zip(left, right, strict=True)
        if all(a.get(c) is not None for c in l_columns) and all(b.get(c) is not None for c in r_columns)
    ]
    if not kept:
        return None
    return np.array([a for a, _ in kept], np.float64).T, np.array([b for _, b in kept], np.float64).T


def _figure(name: str, means: _Array) -> Any:
    """The metric from the means [columns, ...] of its columns."""
    if name != "score":
        return means[0]
    with np.errstate(divide="ignore"):
        return np.where((means > 0).all(axis=0), len(means) / (1 / means).sum(axis=0), 0.0)


def _estimate(name: str, table: _Array) -> Estimate:
    return _bootstrap(table, lambda *columns, axis: _figure(name, np.stack([c.mean(axis=axis) for c in columns])))


def _difference(name: str, left: _Array, right: _Array) -> Estimate:
    half = len(left)

    def statistic(*columns: _Array, axis: int) -> Any:
        means = np.stack([column.mean(axis=axis) for column in columns])
        return _figure(name, means[:half]) - _figure(name, means[half:])

    return _bootstrap(np.concatenate([left, right]), statistic)


def _bootstrap(table: _Array, statistic: Any) -> Estimate:
    with extra("eval"):
        from scipy.stats import bootstrap

    n = table.shape[1]
    value = float(statistic(*table, axis=-1))
    if n < 2:
        return Estimate(value, value, value, n)
    # Percentiles, not BCa: it has no value where all cases agree, as they often do here.
    interval = bootstrap(
        tuple(table), statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, batch=_batch(n),
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Estimate(value, float(interval.low), float(interval.high), n)


def _batch(n: int) -> int:
    """Resamples at a time: some ten million numbers."""
    return max(1, min(RESAMPLES, 10_000_000 // n))


def shown(name: str, value: float | None) -> str:
    """A figure as tables print it."""
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if name not in METRICS or METRICS[name].percent else f"{value:.3f}"
