"""Plots as SVG text, each with a title that states what its data show (`findings`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from neuraldb_faiss.research.evaluation import findings, style
from neuraldb_faiss.research.evaluation.metrics import METRICS
from neuraldb_faiss.research.evaluation.statistics import Estimate

_BESIDE = 3  # panels in a row
_LONGEST = 26  # characters of a name at a row


def dots(groups: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], *, percent: bool = True) -> str:
    """A panel a group and a row a series, with the figure as a dot and its interval as a line: SVG.

    The rows are named at the left, so that there may be any number of them; NeuralDB's are blue, the others grey.
    """
    names = list(series)
    scale = 100 if percent else 1
    columns = max(1, min(len(groups), _BESIDE))
    rows = max(1, -(-len(groups) // columns))
    longest = max((len(_clip(name)) for name in names), default=0)
    made, axes = style.figure(
        0.08 * longest + 2.1 * columns, rows * (0.55 + 0.19 * len(names)),
        findings.of_groups(groups, series, scale=scale), rows, columns,
    )  # fmt: skip
    for number, one in enumerate(axes):
        if number >= len(groups):
            one.set_visible(False)
            continue
        one.set_title(groups[number], fontsize=9, loc="left")
        one.grid(visible=False, axis="y")
        one.grid(axis="x", color=style.LINE, linewidth=0.6)
        one.spines["left"].set_visible(False)
        one.tick_params(axis="y", length=0)
        one.set_ylim(len(names) - 0.4, -0.6)
        one.set_yticks(
            range(len(names)), [_clip(name) for name in names] if number % columns == 0 else [""] * len(names)
        )
        for place, name in enumerate(names):
            found = series[name][number]
            shade = style.BLUE if name.startswith("neuraldb") else style.GREY
            if found is None:
                continue
            one.plot([scale * found.low, scale * found.high], [place, place], color=shade, linewidth=1.6, alpha=0.55)
            filled = not name.startswith("base")
            one.plot(
                scale * found.value, place, marker="o", markersize=5, color=shade,
                markerfacecolor=shade if filled else "white",
            )  # fmt: skip
        for tick, name in zip(one.get_yticklabels(), names, strict=True):
            tick.set_color(style.BLUE if name.startswith("neuraldb") else style.INK)
    return style.svg(made)


def lines(
    series: Mapping[str, Sequence[tuple[float, Estimate]]], *, x: str, y: str, percent: bool = True, log: bool = False,
) -> str:  # fmt: skip
    """A line with a band for its interval for each series of (x, figure), named at its end: SVG. More than six series
    lie in several panels."""
    scale = 100 if percent else 1
    ordered = {name: sorted(points, key=lambda point: point[0]) for name, points in series.items()}
    plain = {name: [(at, scale * one.value) for at, one in points] for name, points in ordered.items()}
    made, axes, panels = _panels(plain, findings.of_lines(plain, x=x, y=y))
    for one, names in zip(axes, panels, strict=True):
        shades = style.colours(names)
        for number, name in enumerate(names):
            at, heights = zip(*plain[name], strict=True)
            if name == findings.BASE:  # a level to compare with
                one.plot(at, heights, linestyle="--", linewidth=1.2, color=shades[name])
                continue
            one.plot(at, heights, marker=style.marker(number), markersize=3.5, linewidth=1.6, color=shades[name])
            low, high = ([scale * getattr(found, end) for _, found in ordered[name]] for end in ("low", "high"))
            one.fill_between(at, low, high, alpha=0.14, color=shades[name], linewidth=0)
        _finish(made, one, {name: plain[name][-1] for name in names}, shades, (x, y), (log, False))
    return style.svg(made)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, log_x: bool = False, log_y: bool = False,
) -> str:  # fmt: skip
    """A line through points for each series, named at its end: SVG. On a logarithmic axis what is 0 is drawn at the
    smallest other. More than six series lie in several panels."""
    positive = [value for points in series.values() for point in points for value in point if value > 0]
    least = min(positive, default=1.0)

    def lifted(value: float, log: bool) -> float:
        return max(value, least) if log else value

    given = {name: [(lifted(a, log_x), lifted(b, log_y)) for a, b in points] for name, points in series.items()}
    made, axes, panels = _panels(given, findings.of_curves(series, x=x, y=y))
    for one, names in zip(axes, panels, strict=True):
        shades = style.colours(names)
        for number, name in enumerate(names):
            at, heights = zip(*given[name], strict=True)
            one.plot(at, heights, marker=style.marker(number), markersize=3.5, linewidth=1.6, color=shades[name])
        ends = {name: max(given[name]) for name in names}
        _finish(made, one, ends, shades, (x, y), (log_x, log_y))
    return style.svg(made)


def histogram(series: Mapping[str, Sequence[float]], *, x: str, bins: int = 60, log: bool = True) -> str:
    """Counts of values over the same bins, a panel for each series: SVG."""
    import numpy as np

    names = list(series)
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    made, axes = style.figure(3.3 * columns, 1.5 * rows, findings.of_values(series, x=x), rows, columns)
    values = np.concatenate([np.asarray(own, float) for own in series.values()])
    edges = np.linspace(values.min(), values.max() + 1e-9, bins + 1)
    for number, one in enumerate(axes):
        if number >= len(names):
            one.set_visible(False)
            continue
        one.hist(series[names[number]], bins=edges, color=style.BLUE, alpha=0.8)
        one.set_title(names[number], fontsize=9, loc="left")
        if log:
            one.set_yscale("log")
        if number >= len(names) - columns:
            one.set_xlabel(x)
        if number % columns == 0:
            one.set_ylabel("count")
    return style.svg(made)


def metric_axis(name: str) -> tuple[str, bool]:
    """(what to write at an axis of this metric, whether it is times 100)."""
    percent = name not in METRICS or METRICS[name].percent
    return (f"{name} (×100)" if percent else name), percent


def _panels(series: Mapping[str, Sequence[Any]], title: str) -> tuple[Any, list[Any], list[list[str]]]:
    """A figure with a panel for each six of the series, or for each ending behind the last comma of their names."""
    names = list(series)
    panels = [names]
    if len(names) > style.MOST:
        by_ending: dict[str, list[str]] = {}
        for name in names:
            by_ending.setdefault(name.rpartition(", ")[2], []).append(name)
        grouped = list(by_ending.values())
        few = 1 < len(grouped) <= style.MOST and max(map(len, grouped)) <= style.MOST
        panels = grouped if few else [names[at : at + style.MOST] for at in range(0, len(names), style.MOST)]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    longest = max(map(len, names), default=0)
    made, axes = style.figure((3.6 + 0.075 * longest) * columns, 2.7 * rows, title, rows, columns)
    for spare in axes[len(panels) :]:
        spare.set_visible(False)
    heights = [height for points in series.values() for _, height in points]
    if len(panels) > 1 and heights:
        room = 0.06 * ((max(heights) - min(heights)) or 1.0)
        for one in axes:
            one.set_ylim(min(heights) - room, max(heights) + room)
    return made, axes[: len(panels)], panels


def _finish(
    made: Any, axes: Any, ends: Mapping[str, tuple[float, float]], shades: Mapping[str, str], words: tuple[str, str],
    log: tuple[bool, bool],
) -> None:  # fmt: skip
    """Axes with their words, and the series' names at their ends."""
    for axis, wanted in ((axes.xaxis, log[0]), (axes.yaxis, log[1])):
        if wanted:
            (axes.set_xscale if axis is axes.xaxis else axes.set_yscale)("log")
            axis.set_major_formatter(style.number_text)
            axis.set_minor_formatter("")
    axes.set_xlabel(words[0])
    axes.set_ylabel(words[1])
    style.label_ends(made, axes, ends, shades)


def _clip(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
