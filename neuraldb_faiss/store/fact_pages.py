"""Pages of the live facts, in several orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.fact_filter import RowFilter, conditions
from neuraldb_faiss.store.records import StoredFact

# Each order ends with `row`, so that it is the same at every look. What was never solved is no worse than what was.
ORDERS = {
    "oldest": "row",
    "newest": "made DESC, row DESC",
    "subject": "subject_key COLLATE NOCASE, row",
    "weakest": "COALESCE(took, 1), COALESCE(probability, 1), row",
}


@dataclass(frozen=True, slots=True)
class FactPage:
    """Some of the facts that fit. number: of the page, from 1. pages: how many there are, at least 1. total: facts."""

    facts: tuple[StoredFact, ...]
    number: int
    pages: int
    total: int


def fact_page(
    catalog: Catalog, generation: int, *, order: str = "oldest", number: int = 1, size: int = 50,
    holding: str | None = None, **where: Unpack[RowFilter],
) -> FactPage:  # fmt: skip
    """A page of the facts that live at a generation.

    Args:
        order: a key of ORDERS. number: of the page, from 1; the last one, where there are fewer. size: facts a page.
        holding: id of a fact; its page is given instead, where it is among them.
        where: which facts; see `Catalog.facts`.

    Raises:
        KeyError: another order.
    """
    by = ORDERS[order]
    condition, values = conditions(where)
    values["g"] = generation
    with catalog.reading():
        total = int(catalog.one(f"SELECT COUNT(*) FROM facts WHERE {condition}", values))
        pages = max(1, -(-total // size))
        if holding is not None:
            place = catalog.one(
                f"SELECT place FROM (SELECT id, ROW_NUMBER() OVER (ORDER BY {by}) AS place FROM facts"
                f" WHERE {condition}) WHERE id = :holding LIMIT 1",
                {**values, "holding": holding},
            )
            number = number if place is None else -(-place // size)
        number = min(max(1, number), pages)
        rows = catalog.all(
            f"SELECT * FROM facts WHERE {condition} ORDER BY {by} LIMIT :limit OFFSET :offset",
            {**values, "limit": size, "offset": (number - 1) * size},
        )
        states = catalog.states_of(generation, {row["entry"] for row in rows})
        return FactPage(tuple(catalog.fact(row, states) for row in rows), number, pages, total)
