"""Table 4: what an attached database costs, per evaluated case and per generated token."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from neuraldb_faiss.research.evaluation import metrics, plots
from neuraldb_faiss.research.evaluation.generation import sample_texts
from neuraldb_faiss.research.evaluation.scoring import score_pairs
from neuraldb_faiss.research.evaluation.statistics import CONFIDENCE, Estimate
from neuraldb_faiss.research.experiments.lab import Lab, Result
from neuraldb_faiss.runs import Row

DEFAULTS = {
    "counts": [50, 100, 200],
    "timed_cases": 16,
    "generated": 16,  # prompts continued at a time
    "length": 32,  # tokens of each
    "repeats": 9,
}


def run(lab: Lab) -> Result:
    """Base and attached model take turns, so that what else the machine does falls on both alike."""
    rows: list[Row] = []
    for count in sorted(lab.config["counts"]):
        with lab.database(count) as db:
            for what, work, units in _works(lab, count):
                with lab.stage(f"{what}, {count} facts", "turn") as report:
                    times = _take_turns(db, lab, work, report)
                rows.append({"facts": count, "what": what, **_figures(times, units)})
    return Result(rows, _table(rows), draw(rows))


def _works(lab: Lab, count: int) -> list[tuple[str, Callable[[], Any], int]]:
    """(what, the work, how many cases or tokens it is)."""
    cases = lab.cases(count)[: lab.config["timed_cases"]]
    wanted = frozenset({"rewrite", "paraphrase", "neighbour"})
    pairs = [pair for case in cases for pair in metrics.pairs(case, wanted)]
    prompts = [case.fact.text for case in lab.cases(count)[: lab.config["generated"]]]
    length = lab.config["length"]

    def score() -> Any:
        return score_pairs(lab.model, lab.tokenizer, pairs)

    def generate() -> Any:
        return sample_texts(lab.model, lab.tokenizer, prompts, prompts, length=length)

    return [("evaluated case", score, len(cases)), ("generated token", generate, len(prompts) * length)]


def _take_turns(db: Any, lab: Lab, work: Callable[[], Any], report: Any) -> np.ndarray[Any, Any]:
    """float64 [repeats, 2]: seconds without and with the database."""
    from neuraldb_faiss.edits.pipeline import Progress

    repeats = lab.config["repeats"]
    times = np.empty((repeats, 2))
    work()  # the allocator and the caches of libraries are warm before the clock runs
    for turn in range(repeats):
        times[turn, 0] = _seconds(work)
        with db.attach(lab.model, lab.tokenizer):
            score_pairs(lab.model, lab.tokenizer, [("The first lookup makes", "the index")])
            times[turn, 1] = _seconds(work)
        report(Progress(turn + 1, repeats, 0, None))
    return times


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _figures(times: np.ndarray[Any, Any], units: int) -> dict[str, float]:
    """Medians; the overhead is the median of the turns' ratios, with a bootstrap interval."""
    ratios = times[:, 1] / times[:, 0] - 1
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    base, attached = np.median(times, axis=0) / units
    return {
        "base_seconds": float(base), "attached_seconds": float(attached), "overhead": float(np.median(ratios)),
        "low": float(low), "high": float(high), "repeats": len(ratios),
    }  # fmt: skip


def _table(rows: list[Row]) -> str:
    lines = ["| per | facts | base, ms | attached, ms | overhead, % |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        interval = f"{100 * row['overhead']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        times = f"{1000 * row['base_seconds']:.2f} | {1000 * row['attached_seconds']:.2f}"
        lines.append(f"| {row['what']} | {row['facts']:,} | {times} | {interval} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row]) -> dict[str, str]:
    """Plots of rows, by name."""
    series: dict[str, list[tuple[float, Estimate]]] = {}
    for row in rows:
        one = Estimate(row["overhead"], row["low"], row["high"], row["repeats"])
        series.setdefault(row["what"], []).append((row["facts"], one))
    return {"overhead": plots.lines(series, x="facts", y="overhead, %")}
