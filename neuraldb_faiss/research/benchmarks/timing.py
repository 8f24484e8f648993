"""Repeated timings with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds of wall time over `repeats` runs behind the warm-up."""

    median: float
    low: float
    high: float
    repeats: int

    def to_dict(self) -> dict[str, Any]:
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure(
    action: Callable[[], object], *, repeats: int = 5, warm_up: int = 1, before: Callable[[], object] | None = None
) -> Timing:
    """Time `action`; `before` runs ahead of each, untimed."""
    return measure_in_turn({"": action}, repeats=repeats, warm_up=warm_up, before=before)[""]


def measure_in_turn(
    actions: Mapping[str, Callable[[], object]], *, repeats: int = 5, warm_up: int = 1,
    before: Callable[[], object] | None = None,
) -> dict[str, Timing]:  # fmt: skip
    """Time several, one after the other in each round, so that what else the machine does falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(warm_up + repeats):
        for name, action in actions.items():
            if before is not None:
                before()
            took = seconds_of(action)
            if number >= warm_up:
                seconds[name].append(took)
    return {name: Timing(median(took), min(took), max(took), repeats) for name, took in seconds.items()}


def seconds_of(action: Callable[[], object]) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
