"""Plots as SVG text."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from neuraldb_faiss.extras import extra
from neuraldb_faiss.research.evaluation.metrics import METRICS
from neuraldb_faiss.research.evaluation.statistics import Estimate

_COLOURS = {
    "neuraldb": "#1b6ca8", "base": "#8a8a8a", "memit": "#d1495b", "alphaedit": "#edae49", "rect": "#66a182",
    "pmet": "#8d6a9f", "rome": "#c97b4a", "ft": "#4a4e69",
}  # fmt: skip
_OTHERS = ("#2e4057", "#a23b72", "#3b8ea5", "#f18f01", "#5c946e", "#7a5195", "#b56576", "#00798c")


def colour(name: str, number: int = 0) -> str:
    """A method's colour, the same in every plot; by number for anything else."""
    return _COLOURS.get(name, _OTHERS[number % len(_OTHERS)])


def colours(methods: Mapping[str, str]) -> dict[str, str]:
    """A colour for each label, by its method; a method's further labels get lighter ones."""
    found: dict[str, str] = {}
    before: list[str] = []
    for number, (label, method) in enumerate(methods.items()):
        share = 0.32 * min(before.count(method), 2)
        channels = [int(colour(method, number)[at : at + 2], 16) for at in (1, 3, 5)]
        found[label] = "#" + "".join(f"{round(one + (255 - one) * share):02x}" for one in channels)
        before.append(method)
    return found


def bars(
    groups: Sequence[str], series: Mapping[str, Sequence[Estimate | None]], *, percent: bool = True,
    label: str = "%", colours: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """A bar with its interval for each group and series: SVG."""
    named = 0.085 * max(map(len, groups), default=0)  # inches a group's name takes: they must not run together
    figure, axes = _figure(max(5.0, 0.9 + len(groups) * max(named, 0.16 * (len(series) + 1.5))), 3.2)
    width = 0.8 / max(1, len(series))
    scale = 100 if percent else 1
    for number, (name, estimates) in enumerate(series.items()):
        at = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        known = [(x, one) for x, one in zip(at, estimates, strict=True) if one is not None]
        heights = [scale * one.value for _, one in known]
        axes.bar(
            [x for x, _ in known], heights, width * 0.92, yerr=_errors([one for _, one in known], scale), label=name,
            color=(colours or {}).get(name) or colour(name, number), error_kw={"elinewidth": 0.8, "ecolor": "#222222"},
        )  # fmt: skip
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(label)
    return _svg(figure, axes)


def lines(
    series: Mapping[str, Sequence[tuple[float, Estimate]]], *, x: str, y: str, percent: bool = True, log: bool = False
) -> str:
    """A line with a band for its interval for each series of (x, figure): SVG."""
    figure, axes = _figure(5.6, 3.2)
    scale = 100 if percent else 1
    for number, (name, points) in enumerate(series.items()):
        points = sorted(points, key=lambda point: point[0])
        at = [place for place, _ in points]
        shade = colour(name.partition(",")[0], number)
        axes.plot(at, [scale * one.value for _, one in points], marker="o", markersize=3, label=name, color=shade)
        axes.fill_between(
            at, [scale * one.low for _, one in points], [scale * one.high for _, one in points], alpha=0.18,
            color=shade, linewidth=0,
        )  # fmt: skip
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return _svg(figure, axes)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, log_x: bool = False, log_y: bool = False
) -> str:
    """A line through points for each series: SVG. On a logarithmic axis what is 0 is drawn at the smallest other."""
    figure, axes = _figure(5.6, 3.6)

    positive = [value for points in series.values() for point in points for value in point if value > 0]
    least = min(positive, default=1.0)

    def lifted(values: Sequence[float], log: bool) -> list[float]:
        return [max(value, least) for value in values] if log else list(values)

    for number, (name, points) in enumerate(series.items()):
        at, heights = zip(*points, strict=True)
        axes.plot(
            lifted(at, log_x), lifted(heights, log_y), marker="o", markersize=3, label=name, color=colour("", number)
        )
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return _svg(figure, axes)


def histogram(series: Mapping[str, Sequence[float]], *, x: str, bins: int = 60, log: bool = True) -> str:
    """Counts of values for each series, over the same bins: SVG."""
    import numpy as np

    figure, axes = _figure(5.6, 3.2)
    values = np.concatenate([np.asarray(own, float) for own in series.values()])
    edges = np.linspace(values.min(), values.max() + 1e-9, bins + 1)
    for number, (name, own) in enumerate(series.items()):
        axes.hist(own, bins=edges, histtype="step", label=name, color=_OTHERS[number % len(_OTHERS)], linewidth=1.3)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel("count")
    return _svg(figure, axes)


def metric_axis(name: str) -> tuple[str, bool]:
    """(what to write at an axis of this metric, whether it is times 100)."""
    percent = name not in METRICS or METRICS[name].percent
    return (f"{name} (×100)" if percent else name), percent


def _errors(estimates: Sequence[Estimate], scale: float) -> list[list[float]]:
    # Rounding may put an end of the interval on the wrong side of the figure by 1e-16.
    low = [max(0.0, scale * (one.value - one.low)) for one in estimates]
    return [low, [max(0.0, scale * (one.high - one.value)) for one in estimates]]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    with extra("eval"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, axes: Any) -> str:
    from matplotlib import rc_context

    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 4 if max(map(len, labels)) <= 16 else 2  # more would not fit the width
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False, fontsize=8
        )
    out = io.StringIO()
    # Text stays text, and the same data give the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "neuraldb", "font.family": "sans-serif", "font.size": 9}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
