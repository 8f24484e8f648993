"""Types of option values that click does not have: slices, lists of layers, lists of gammas."""

from __future__ import annotations

from typing import Any

import click


class Shard(click.ParamType):
    """ "i/N", 1 <= i <= N, as a pair of numbers."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        try:
            number, count = (int(part) for part in value.split("/"))
        except ValueError:
            self.fail(f"{value!r} is not of the form i/N, as in 1/4", param, ctx)
        if not 1 <= number <= count:
            self.fail(f"{value!r}: i runs from 1 to N", param, ctx)
        return number, count


class Layers(click.ParamType):
    """ "1-5,8" as a tuple of layers."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        found: set[int] = set()
        try:
            for part in value.split(","):
                first, dash, last = part.partition("-")
                found.update(range(int(first), int(last if dash else first) + 1))
        except ValueError:
            found.clear()
        if not found:
            self.fail(f"{value!r} is no list of layers, as in 1-5 or 3,7", param, ctx)
        return tuple(sorted(found))


class Gammas(click.ParamType):
    """ "0.45,0.65" as a tuple of numbers."""

    name = "gammas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers, as in 0.45,0.65", param, ctx)
