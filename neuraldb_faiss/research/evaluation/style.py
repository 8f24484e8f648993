"""Style that all plots share: colours, fonts, axes, labels at line ends, and SVG that is the same for the same data."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from neuraldb_faiss.extras import extra

# Okabe and Ito's colours, which people with any kind of colour vision tell apart; yellow is too pale for thin lines.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#B87700", "#3A8FC4"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
GREY, INK, SOFT, LINE = "#8A8F94", "#1D2228", "#5B6570", "#E3E6EA"
MOST = len(PALETTE)  # series of one panel
_METHODS = {"neuraldb": BLUE, "base": GREY, "memit": VERMILION, "alphaedit": GREEN, "rome": PURPLE, "ft": ORANGE}
_MARKERS = ("o", "s", "^", "D", "v", "P")
_RC: Any = {"svg.fonttype": "none", "svg.hashsalt": "neuraldb", "font.family": "sans-serif", "font.size": 9,
       "axes.edgecolor": SOFT, "axes.labelcolor": SOFT, "xtick.color": SOFT, "ytick.color": SOFT,
       "text.color": INK}  # fmt: skip
TITLE_WIDTH = 11.5  # characters of a title to an inch
_GAP = 11.0  # points between two labels at line ends


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of at most MOST names: a method's own one, so that it is the same in every plot, else the next
    that is free. Further names are grey."""
    found = {name: _METHODS[method] for name in names if (method := name.partition(",")[0]) in _METHODS}
    taken: list[str] = []
    for name, shade in list(found.items()):
        if shade in taken and shade != GREY:
            del found[name]
        taken.append(shade)
    free = iter([shade for shade in PALETTE if shade not in taken])
    for name in names:
        if name not in found:
            found[name] = next(free, GREY)
    return {name: found[name] for name in names}


def marker(number: int) -> str:
    """A series' marker, which tells it apart without colour."""
    return _MARKERS[number % len(_MARKERS)]


def figure(width: float, height: float, title: str, rows: int = 1, columns: int = 1) -> tuple[Any, list[Any]]:
    """A figure of so many inches and its axes, row by row, with the title over them all at the left."""
    with extra("eval"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    lines = textwrap.wrap(title, int(width * TITLE_WIDTH))
    with rc_context(_RC):
        made = Figure(figsize=(width, height + 0.17 * len(lines)), layout="constrained")
        grid = made.subplots(rows, columns, squeeze=False)
        if lines:
            made.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, fontweight="bold")
    axes = [one for row in grid for one in row]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color=LINE, linewidth=0.6)
        one.set_axisbelow(True)
    return made, axes


def number_text(value: float, _: object = None) -> str:
    """A number at a logarithmic axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def label_ends(made: Any, axes: Any, ends: Mapping[str, tuple[float, float]], shades: Mapping[str, str]) -> None:
    """Write each series' name beside the last of its points, (x, y); names that would lie on one another move apart."""
    from matplotlib import rc_context

    if not ends:
        return
    with rc_context(_RC):
        # Room for the names first, for the layout decides how far apart they are.
        longest = max(ends, key=len)
        edge = max(x for x, _ in ends.values())
        made.canvas.draw_idle()
        spare = axes.annotate(longest, (edge, next(iter(ends.values()))[1]), (10, 0), textcoords="offset points")
        made.draw_without_rendering()
        spare.remove()
        points = 72 / made.dpi
        heights = {name: axes.transData.transform(end)[1] * points for name, end in ends.items()}
        for name, place in _apart(heights).items():
            moved = place - heights[name]
            axes.annotate(
                name, ends[name], (8, moved), textcoords="offset points", va="center", color=shades[name], fontsize=8.5,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": shades[name], "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
                if abs(moved) > 3 else None,
            )  # fmt: skip


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """These heights, moved as little as keeps them _GAP apart: groups that touch are spread about their middle."""
    groups: list[tuple[list[str], float]] = []  # names from below, and their middle
    for name in sorted(heights, key=lambda one: heights[one]):
        groups.append(([name], heights[name]))
        while len(groups) > 1 and _top(groups[-2]) + _GAP > _bottom(groups[-1]):
            (lower, _), (upper, _) = groups.pop(-2), groups.pop()
            joined = lower + upper
            groups.append((joined, sum(heights[one] for one in joined) / len(joined)))
    return {name: _bottom(group) + _GAP * at for group in groups for at, name in enumerate(group[0])}


def _bottom(group: tuple[list[str], float]) -> float:
    return group[1] - _GAP * (len(group[0]) - 1) / 2


def _top(group: tuple[list[str], float]) -> float:
    return group[1] + _GAP * (len(group[0]) - 1) / 2


def svg(made: Any) -> str:
    """The figure as SVG whose text stays text, the same bytes for the same data."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in made.findobj(Text):
        text.set_parse_math(False)  # a name may hold "$"
    out = io.StringIO()
    with rc_context(_RC):
        made.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
