"""Types of option values that click does not have: names of a registry, slices, lists of layers or gammas."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from neuraldb_faiss.errors import did_you_mean


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on only
    """One of several names; an unknown one is told with the names that are near it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            hint = did_you_mean(str(value), map(str, self.choices))
            raise click.BadParameter(f"{error.message}{hint}", ctx, param) from None


class Kinds(Choice):
    """Names of a registry, which is read when they are needed: other packages may add some."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self._names())

    @choices.setter
    def choices(self, value: tuple[str, ...]) -> None: ...


class Shard(click.ParamType):  # type: ignore[type-arg]
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


class Layers(click.ParamType):  # type: ignore[type-arg]
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


class Gammas(click.ParamType):  # type: ignore[type-arg]
    """ "0.45,0.65" as a tuple of numbers."""

    name = "gammas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers, as in 0.45,0.65", param, ctx)
