"""Figures about a database as a mapping that prints as a table."""

from __future__ import annotations

from html import escape
from typing import Any


class Info(dict[str, Any]):
    """What `NeuralDB.info` returns: a dict of JSON values, a line each when printed, a table in a notebook."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {_shown(value)}" for name, value in self.items())

    def _repr_html_(self) -> str:
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(_shown(value))}</td></tr>" for name, value in self.items())
        return f"<table>{''.join(rows)}</table>"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
