"""Digests of generations: SHA-256 over the rows that a generation made or ended, and over the digest before it.

SQLite's own integrity check misses most flipped bits; this one does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.store.records import FACT_COLUMNS, canonical_rows

if TYPE_CHECKING:
    from neuraldb_faiss.store.catalog import Catalog

_ROWS = 500  # hashed at once
# (columns and table, order within a generation)
_TABLES = (
    ("* FROM settings", "name, made"),
    ("* FROM segments", "segment"),
    ("* FROM entry_states", "entry, made"),
    (f"row, {', '.join(FACT_COLUMNS)}, made FROM facts", "row"),
)


def digest_of(catalog: Catalog, generation: int) -> str:
    """Hex; the rows of `generation` must be in place."""
    ((_, digest),) = digests(catalog, [generation], catalog.config(generation).history_start)
    return digest


def first_wrong(catalog: Catalog, first: int, last: int) -> int | None:
    """The first of these generations whose rows are not those that it made and ended; None where all are."""
    for generation, digest in digests(catalog, range(first, last + 1), catalog.check_history(last)):
        if digest != catalog.generation_record(generation).digest:
            return generation
    return None


def renew_digests(catalog: Catalog, first: int, last: int) -> None:
    """Inside a transaction: set those of these generations anew, because what they made is stored in another way."""
    for generation, digest in digests(catalog, range(first, last + 1), catalog.check_history(last)):
        catalog.run("UPDATE generations SET digest = ? WHERE generation = ?", (digest, generation))


def wrong_generations(catalog: Catalog) -> Iterator[tuple[int, str]]:
    """(generation, what is wrong with it) for every one whose rows are not those that it made and ended.

    One pass over every table, whatever the number of generations. What a compaction forgets meanwhile is not wrong.
    """
    newest = catalog.generation
    start = catalog.check_history(newest)
    kept = {one.generation: one.digest for one in catalog.generations() if start <= one.generation <= newest}
    if len(kept) != newest - start + 1:
        yield newest, f"of the generations {start} to {newest} some are missing"
    for generation, digest in digests(catalog, sorted(kept), start):
        if digest != kept[generation] and generation >= catalog.check_history(catalog.generation):
            yield generation, f"rows of generation {generation} changed since they were written (digest differs)"


def digests(catalog: Catalog, generations: Sequence[int], start: int) -> Iterator[tuple[int, str]]:
    """(generation, digest) of some generations, which ascend. `start`: the first of the history that is kept; it also
    answers for the rows that compaction kept of those before it."""
    if not generations:
        return
    first, last = generations[0], generations[-1]
    span = {"low": first - 1, "high": last}
    later = {**span, "low": max(start, first - 1)}
    with ExitStack() as streams:  # a stream that is not read to its end would keep writers out until it is closed

        def groups(sql: str, bounds: dict[str, int]) -> _Groups:
            return _Groups(streams.enter_context(closing(catalog.stream(sql, bounds))))

        tables = [
            groups(
                f"SELECT {what.replace(' FROM', ', made FROM')} WHERE made > :low AND made <= :high"
                f" ORDER BY made, {order}", later,
            )
            for what, order in _TABLES
        ]  # fmt: skip
        ended = groups("SELECT row, ended FROM facts WHERE ended > :low AND ended <= :high ORDER BY ended, row", span)
        yield from _digests(catalog, generations, start, tables, ended)


def _digests(
    catalog: Catalog, generations: Sequence[int], start: int, tables: Sequence[_Groups], ended: _Groups
) -> Iterator[tuple[int, str]]:
    for generation in generations:
        digest = hashlib.sha256()
        one = {"g": generation}
        if generation != start:
            _feed(digest, catalog.stream("SELECT digest FROM generations WHERE generation = :g - 1", one))
        _feed(digest, catalog.stream(
            "SELECT generation, time, command, added, updated, removed, facts, entries FROM generations"
            " WHERE generation = :g", one,
        ))  # fmt: skip
        for table, (what, order) in zip(tables, _TABLES, strict=True):
            if generation == start:
                _feed(digest, catalog.stream(f"SELECT {what} WHERE made <= :g ORDER BY {order}", one))
            else:
                _feed(digest, table.of(generation))
        _feed(digest, ended.of(generation))
        yield generation, digest.hexdigest()


def _feed(digest: Any, rows: Iterable[tuple[Any, ...]]) -> None:
    rows = iter(rows)
    while block := list(islice(rows, _ROWS)):
        try:
            digest.update(canonical_rows(block).encode())
        except (TypeError, ValueError) as error:  # a blob, or half of a surrogate pair
            raise CorruptError(f"a row holds what no column may hold ({error})") from None


class _Groups:
    """Rows in the order of their last column, handed out by its value, without it."""

    def __init__(self, rows: Iterable[tuple[Any, ...]]) -> None:
        self._groups = groupby(rows, key=lambda row: row[-1])
        self._next: Any = None

    def of(self, value: int) -> Iterator[tuple[Any, ...]]:
        while self._next is None or self._next[0] < value:
            self._next = next(self._groups, (float("inf"), ()))
        if self._next[0] == value:
            for row in self._next[1]:
                yield row[:-1]
