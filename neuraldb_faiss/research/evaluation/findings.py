"""Sentences that say what the data of a plot show; nothing in them is known before the data are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from neuraldb_faiss.research.evaluation.statistics import Estimate

OURS, BASE = "neuraldb", "base"
_LEADING = "score"  # the metric that says most, where it is among them

Points = Mapping[str, Sequence[tuple[float, float]]]


def of_groups(groups: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], *, scale: float = 1) -> str:
    """Which series leads in the score; where there is none, where NeuralDB differs from the base model; else which one
    leads in the first group."""
    table = {name: dict(zip(groups, values, strict=True)) for name, values in series.items()}
    ours = next((name for name in table if name.startswith(OURS)), None)
    if _LEADING not in groups and ours is not None and BASE in table:
        return _against_base(groups, table[ours], table[BASE], ours)
    for group in ([_LEADING] if _LEADING in groups else []) + list(groups):
        found = {name: one for name, row in table.items() if (one := row[group]) is not None and name != BASE}
        if found:
            return _leader(group, found, scale)
    return "No figures"


def _against_base(
    groups: Sequence[str], ours: Mapping[str, Estimate | None], base: Mapping[str, Estimate | None], name: str
) -> str:
    pairs = [(group, ours[group], base[group]) for group in groups]
    known = [(group, one, other) for group, one, other in pairs if one is not None and other is not None]
    apart = [group for group, one, other in known if one.high < other.low or one.low > other.high]
    if not apart:
        return f"{name} lies within the base model’s interval in all {len(known)} of them"
    return f"{name} differs from the base model in {', '.join(apart)}, of {len(known)}"


def _leader(group: str, found: Mapping[str, Estimate], scale: float) -> str:
    ranked = sorted(found, key=lambda name: -found[name].value)
    best = found[ranked[0]]
    told = f"{group}: highest is {ranked[0]}, {_number(scale * best.value)}"
    if len(ranked) == 1:
        return f"{group}: {ranked[0]} has {_number(scale * best.value)}"
    second = found[ranked[1]]
    if best.low > second.high:
        return f"{told}; next is {ranked[1]} with {_number(scale * second.value)}"
    level = [name for name in ranked[1:] if found[name].high >= best.low]
    others = level[0] if len(level) == 1 else f"{len(level)} others"
    return f"{told}, within the intervals of {others}"


def of_lines(series: Points, *, x: str, y: str) -> str:
    """How each series changes from its first x to its last: all where they are few, else the two that change most."""
    moved = {name: (points[0], points[-1]) for name, points in series.items() if len(points) > 1 and name != BASE}
    if not moved:
        return f"{y} by {x}"
    told = sorted(moved, key=lambda name: -abs(moved[name][1][1] - moved[name][0][1]))
    shown = told[:2]
    if OURS in told:
        shown = [OURS, *[name for name in told if name != OURS][:1]]
    parts = [f"{name} {_move(moved[name][0][1], moved[name][1][1])}" for name in shown]
    first, last = moved[shown[0]][0][0], moved[shown[0]][1][0]
    return f"{y}, {x} {_number(first)} to {_number(last)}: {'; '.join(parts)}"


def _move(first: float, last: float) -> str:
    a, b = _number(first), _number(last)
    return f"stays at {a}" if a == b else f"{'rises' if last > first else 'falls'} from {a} to {b}"


def of_curves(series: Points, *, x: str, y: str) -> str:
    """The highest and the lowest y that series have at the last x, where they share it; else the best of each up to the
    smallest x that all of them reach."""
    known = {name: points for name, points in series.items() if points}
    if not known:
        return f"{y} by {x}"
    last = {max(a for a, _ in points) for points in known.values()}
    at = max(last) if len(last) == 1 else max(min(a for a, _ in points) for points in known.values())
    if len(last) == 1:
        reached = {name: max(points)[1] for name, points in known.items()}
    else:
        reached = {name: max(b for a, b in points if a <= at) for name, points in known.items()}
    best, worst = max(reached, key=lambda name: reached[name]), min(reached, key=lambda name: reached[name])
    where = f"at {x} of {_number(at)}"
    if len(known) == 1 or reached[best] == reached[worst]:
        return f"{y} is {_number(reached[best])} {where}"
    return f"{y} {where}: {_number(reached[best])} for {best}, {_number(reached[worst])} for {worst}"


def of_values(series: Mapping[str, Sequence[float]], *, x: str) -> str:
    """The medians of the series with the largest and the smallest."""
    middles = {name: median(values) for name, values in series.items() if len(values)}
    if not middles:
        return x
    best, worst = max(middles, key=lambda name: middles[name]), min(middles, key=lambda name: middles[name])
    if best == worst:
        return f"{x}: median {_number(middles[best])} for {best}"
    return f"{x}: median {_number(middles[best])} for {best}, {_number(middles[worst])} for {worst}"


def _number(value: float) -> str:
    """With as many digits as a reader needs."""
    size = abs(value)
    if value == int(value) and size < 1e12:
        return f"{int(value):,}"
    if size >= 10:
        return f"{value:,.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"
