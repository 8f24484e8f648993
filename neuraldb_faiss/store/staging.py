"""Staging of complete segments and their facts, which the commit then publishes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.store.records import StoredFact
from neuraldb_faiss.store.segments import SegmentRecord, write_columns
from neuraldb_faiss.store.transaction import Transaction


@dataclass(frozen=True)
class Piece:
    """A segment to be written: its sizes, its prefixes, and `column(name)`, the rows of each of `ARRAYS` in blocks."""

    entries: int
    keys: int
    prefixes: tuple[str, ...]
    column: Callable[[str], Iterable[np.ndarray]]


def stage_pieces(tx: Transaction, pieces: Iterable[Piece], facts: Iterable[StoredFact], origin: str | Path) -> None:
    """Stage segments and the rows of the facts they serve, in a transaction that has been restarted.

    Entry ids are final: from `tx.next_entry` on. What a fact says of its entry's state is set. The arrays are written
    first; where they or the facts turn out to be bad, the catalog has not changed.

    Raises:
        CorruptError: the facts contradict each other; `origin` is named.
    """
    records = [_write(tx, piece, offset) for offset, piece in enumerate(pieces, start=1)]
    with tx.catalog.transaction():
        for record in records:
            tx.catalog.put_segment(record)
        tx.catalog.put_facts(_noting_states(tx, facts), made=None)
        _check(tx, origin)
        tx.catalog.set_counter("segments", tx.catalog.counter("segments") + len(records))
        last = tx.catalog.one("SELECT MAX(entry) FROM facts WHERE made IS NULL")
        tx.catalog.set_counter("entries", tx.next_entry if last is None else last + 1)


def _write(tx: Transaction, piece: Piece, offset: int) -> SegmentRecord:
    record = SegmentRecord(tx.catalog.counter("segments") + offset, None, piece.entries, piece.keys, piece.prefixes, {})
    folder = tx.root / "segments" / record.name
    manifest = write_columns(folder, piece.entries, piece.keys, tx.d1, tx.d2, piece.column)
    return SegmentRecord(record.segment, None, piece.entries, piece.keys, piece.prefixes, manifest)


def _noting_states(tx: Transaction, facts: Iterable[StoredFact]) -> Iterator[StoredFact]:
    for fact in facts:
        if fact.state != "live":
            tx.set_state(fact.entry, fact.state)
        yield fact


_RULES = (
    ("identity", "COUNT(DISTINCT target)", "has two targets"),
    ("identity, entry", "COUNT(*)", "has two rows for one entry"),
    ("id", "COUNT(DISTINCT identity)", "shares its id with another"),
)


def _check(tx: Transaction, origin: str | Path) -> None:
    for columns, number, what in _RULES:
        rows = tx.catalog.all(
            f"SELECT subject, prompt FROM facts WHERE made IS NULL GROUP BY {columns} HAVING {number} > 1 LIMIT 1"
        )
        if rows:
            text = rows[0]["prompt"].replace("{}", rows[0]["subject"])
            raise CorruptError(f"{origin}: the fact {text!r} {what}; nothing was imported")
