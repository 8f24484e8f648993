"""Estimates with confidence intervals, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.output import console

if TYPE_CHECKING:
    from neuraldb_faiss.research.evaluation.statistics import Estimate

    Estimates = Mapping[str, Estimate | None]


def estimates_json(found: Estimates, based: Estimates, apart: Estimates, **about: Any) -> dict[str, Any]:
    """Figures under the metrics' names, shares as shares; null where not available."""

    def interval(one: Estimate | None) -> list[float] | None:
        return None if one is None else [one.low, one.high]

    return {
        **{name: None if one is None else one.value for name, one in found.items()},
        **{f"base_{name}": None if one is None else one.value for name, one in based.items()},
        "intervals": {name: interval(one) for name, one in found.items()},
        "base_intervals": {name: interval(one) for name, one in based.items()},
        "differences": {
            name: None if one is None else {"value": one.value, "interval": interval(one)}
            for name, one in apart.items()
        },
        **about,
    }  # fmt: skip


def print_estimates(method: str, found: Estimates, based: Estimates, apart: Estimates) -> None:
    from rich import box
    from rich.table import Table

    from neuraldb_faiss.research.evaluation.statistics import shown

    def cell(name: str, one: Estimate | None) -> str:
        if one is None:
            return "n/a"
        return f"{shown(name, one.value)} [{shown(name, one.low)}, {shown(name, one.high)}]"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    heads = [(method, found)] + ([("base", based), ("difference", apart)] if based else [])
    for head, _ in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name in found:
        table.add_row(name, *(cell(name, estimates[name]) for _, estimates in heads))
    console().print(table)
