"""Repeated timings with their spread."""

from __future__ import annotations

import time
from collections.abc import Callable
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
    seconds: list[float] = []
    for number in range(warm_up + repeats):
        if before is not None:
            before()
        start = time.perf_counter()
        action()
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
    return Timing(median(seconds), min(seconds), max(seconds), repeats)
