"""Kinds by name: those of this package, and those that other packages add by an entry point.

A room that takes kinds (guards, index kinds, objectives, datasets, experiments, commands) has a `registry.py` with one
row a kind. Options, help texts and errors read it, so it imports nothing heavy: a row only says where its code stands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, Protocol, TypeVar

from neuraldb_faiss.errors import NeuralDBError, did_you_mean


class Kind(Protocol):
    """A row: `name` as users write it, `help` in one line."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...


K = TypeVar("K", bound=Kind)


class Registry(Generic[K]):
    """The kinds of one room, in their order: the package's own first, then those of entry points."""

    def __init__(
        self, what: str, group: str, built_in: Iterable[K], error: type[NeuralDBError],
        row_of: Callable[[EntryPoint], K] = EntryPoint.load,
    ) -> None:  # fmt: skip
        """Take the package's own rows.

        Args:
            what: what an error calls such a kind, as "dataset".
            group: of the entry points; the object of each is a row.
            built_in: the package's own rows.
            error: raised for an unknown name.
            row_of: makes the row of an entry point; by default its object is one.
        """
        self._what, self.group, self._built_in, self._error = what, group, tuple(built_in), error
        self._row_of = row_of

    @cached_property
    def kinds(self) -> dict[str, K]:
        """Every kind by its name; of two with one name the first counts. One that cannot be loaded warns."""
        found = {kind.name: kind for kind in self._built_in}
        for point in entry_points(group=self.group):
            try:
                kind = self._row_of(point)
            except Exception as error:  # somebody else's package: ours must go on without it
                message = f"the {self._what} {point.name!r} ({point.value}) cannot be loaded: {error}"
                warnings.warn(message, stacklevel=2)
                continue
            found.setdefault(kind.name, kind)
        return found

    def __getitem__(self, name: str) -> K:
        """The kind called `name`; for an unknown one the error that the registry was made with."""
        if name not in self.kinds:
            hint = did_you_mean(name, self.kinds)
            raise self._error(f"unknown {self._what} {name!r}: choose one of {', '.join(self.kinds)}.{hint}")
        return self.kinds[name]


def load(place: str) -> Any:
    """What stands at "module:attribute"; of "module" alone, the module."""
    module, _, attribute = place.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded
