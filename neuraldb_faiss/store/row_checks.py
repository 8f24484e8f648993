"""Check of every row in the catalog, including old generations and staged rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.records import check_columns, from_row, subject_key
from neuraldb_faiss.strict_json import BadJSON, parse, parse_object, parse_strings

_SHOWN = 20  # bad rows of one table that are told one by one
_PAGE = 5000

Row = dict[str, Any]


def bad_rows(catalog: Catalog) -> Iterator[str]:
    """What is wrong with rows, one line each; the first of every table, then how many more there are."""
    newest = catalog.generation
    used: dict[str, int] = {}  # the largest number of each kind that a row names

    def use(counter: str, number: int) -> None:
        used[counter] = max(used.get(counter, -1), number)

    def check_life(row: Row) -> None:
        made, ended = row["made"], row.get("ended")
        if (made or 0) > newest or (ended or 0) > newest:
            raise CorruptError(f"it is of a generation after the newest, {newest}")
        if ended is not None and (made is None or ended < made):
            raise CorruptError("it ended before it was made")

    def fact(row: Row) -> None:
        found = from_row(row, {})
        check_life(row)
        if (row["identity"], row["subject_key"]) != (found.identity, subject_key(found.subject)):
            raise CorruptError("its identity or the key of its subject is not what its text gives")
        use("entries", row["entry"])

    def segment(row: Row) -> None:
        catalog.segment(row)
        check_life(row)
        use("segments", row["segment"])

    def setting(row: Row) -> None:
        check_life(row)
        parse(row["value"])

    def state(row: Row) -> None:
        check_life(row)
        use("entries", row["entry"])

    def nothing(row: Row) -> None:
        pass

    checks: dict[str, Callable[[Row], None]] = {
        "generations": nothing, "settings": setting, "segments": segment, "facts": fact, "entry_states": state,
        "staging": nothing,
    }  # fmt: skip
    for table, check in checks.items():
        bad = 0
        for number, row in enumerate(_rows(catalog, table), start=1):
            try:
                check_columns(tuple(row), [tuple(row.values())])
                check(row)
            except (StoreError, BadJSON) as error:
                bad += 1
                if bad <= _SHOWN:
                    yield f"row {row.get('row', row.get('segment', number))} of table {table}: {error}"
        if bad > _SHOWN:
            yield f"table {table}: {bad - _SHOWN} more rows that cannot be read"
    yield from _bad_settings(catalog)
    for name, largest in used.items():
        try:
            given = catalog.counter(name)
        except StoreError as error:
            yield str(error)
            continue
        # Entries count from 0 and are counted, segments are numbered from 1 and the last is kept.
        if given < largest + (name == "entries"):
            yield f"the counter {name} says {given}, but {largest} is in use"


def check_live(catalog: Catalog) -> None:
    """Whether the texts of every live fact can be read: their types and their JSON, not the rules of `Fact`.

    Raises:
        CorruptError: names the first row that cannot.
    """
    after = -1
    seen: set[str] = set()  # most facts share their sources
    while True:
        rows = catalog.all(
            f"SELECT * FROM facts WHERE {VISIBLE} AND row > :after ORDER BY row LIMIT {_PAGE}",
            {"g": catalog.generation, "after": after},
        )
        for row in rows:
            try:
                if row["sources"] not in seen:
                    parse_strings(row["sources"])
                    seen.add(row["sources"])
                if row["metadata"] != "{}":
                    parse_object(row["metadata"])
            except BadJSON as error:
                raise CorruptError(f"{catalog.path}: row {row['row']} of table facts: {error}") from None
        if len(rows) < _PAGE:
            return
        after = rows[-1]["row"]
        if len(seen) > _PAGE:
            seen.clear()


def _rows(catalog: Catalog, table: str) -> Iterator[Row]:
    names = [name for _, name, *_ in catalog.stream(f"PRAGMA table_info({table})")]
    for values in catalog.stream(f"SELECT * FROM {table}"):
        yield dict(zip(names, values, strict=True))


def _bad_settings(catalog: Catalog) -> Iterator[str]:
    """The settings as each generation has them that is kept and changed one."""
    try:
        start = catalog.check_history(catalog.generation)
    except StoreError as error:
        yield str(error)
        return
    later = catalog.stream("SELECT DISTINCT made FROM settings WHERE made > ? ORDER BY made", (start,))
    for made in (start, *(made for (made,) in later)):
        try:
            catalog.config(made)
        except StoreError as error:
            yield f"settings of generation {made}: {error}"
