"""Options of long commands, listed under headings in the help."""

from __future__ import annotations

from typing import Any

import click

_SECTION = "__section__"
FACTS, OUTPUT, MODEL = "Facts", "Output", "Model"
SOLVING, GATE, INDEX, CLUSTER = "Solving", "Gate and delivery", "Index", "Several machines"
_ORDER = (FACTS, MODEL, OUTPUT, SOLVING, GATE, INDEX, CLUSTER)


def both(*decorators: Any) -> Any:
    """Several decorators as one, the first one's option first in the help text."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def section(title: str, *options: Any) -> Any:
    """These options, listed under `title` by a command of class `Sectioned`."""
    declared = both(*options)

    def decorate(function: Any) -> Any:
        before = len(getattr(function, "__click_params__", ()))
        function = declared(function)
        for param in function.__click_params__[before:]:
            setattr(param, _SECTION, title)
        return function

    return decorate


class Sectioned(click.Command):
    """A command whose help lists options under the headings of their sections, the others last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*_ORDER, "Other options")}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                rows[getattr(param, _SECTION, "Other options")].append(record)
        for title, listed in rows.items():
            if listed:
                with formatter.section(title):
                    formatter.write_dl(listed)
