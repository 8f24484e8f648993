"""Tables of facts (CSV and TSV): a header names the columns, every further row is one record."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from typing import Any

from neuraldb_faiss.errors import FactError

# Columns whose cells hold several texts.
LISTS = frozenset({"aliases", "paraphrases", "questions", "paraphrase_prompts", "neighborhood_prompts"})
BETWEEN = "|"  # stands between the texts of such a cell
_DELIMITERS = ",;\t"
# Other names of a column, as spreadsheets and knowledge bases have them.
_NAMES = {"predicate": "relation", "property": "relation"}
_NEEDED = {"subject"}


def delimiter_of(line: str) -> str | None:
    """The delimiter of a table whose header this line is; None where it is no header with a column "subject"."""
    for delimiter in _DELIMITERS:
        try:
            columns = _columns(next(csv.reader([line], delimiter=delimiter), []))
        except csv.Error:
            return None
        if len(columns) > 1 and set(columns) >= _NEEDED:
            return delimiter
    return None


def read_table(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, Any]]:
    """(line that the row ends on, from 1; record, or the FactError that says why there is none) of every row.

    Empty cells are left out; cells of the columns in LISTS become lists of texts.

    Args:
        lines: with their line ends, the header first.

    Raises:
        FactError: a column is named twice, or not at all; a quoted cell does not end.
    """
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        columns = _columns(next(rows))
        twice = next((name for at, name in enumerate(columns) if name in columns[:at]), None)
        if twice is not None:
            raise FactError(f"the header names the column {twice!r} twice" if twice else "a column has no name")
        for row in rows:
            if any(cell.strip() for cell in row):
                yield rows.line_num, _record(columns, row)
    except csv.Error as error:
        raise FactError(f"not a valid table: {error}") from None


def _columns(header: list[str]) -> list[str]:
    """The header's names in lower case, words joined by underscores."""
    names = ("_".join(name.casefold().split()) for name in header)
    return [_NAMES.get(name, name) for name in names]


def _record(columns: list[str], row: list[str]) -> dict[str, Any] | FactError:
    if len(row) > len(columns):
        return FactError(
            f"the row has {len(row)} cells, the header {len(columns)}: put a cell that holds the delimiter in quotes"
        )
    cells = {name: cell.strip() for name, cell in zip(columns, row, strict=False) if cell.strip()}
    return {name: _several(cell) if name in LISTS else cell for name, cell in cells.items()}


def _several(cell: str) -> list[str]:
    return [text.strip() for text in cell.split(BETWEEN) if text.strip()]
