"""Entries that are solved by now: those of the generation that a transaction starts from, and those it has staged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from itertools import groupby

import numpy as np

from neuraldb_faiss.facts.joining import separator
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.intact import error_for, open_segment
from neuraldb_faiss.store.segments import Segment, SegmentRecord
from neuraldb_faiss.store.transaction import Transaction


def solved_entries(
    transaction: Transaction, kind: str, pieces: int, most: int
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """The newest `most` entries with a residual of this kind: the targets of each one's facts, each with what stands
    before it, and their residuals float32 [n, d2].

    Left out are entries that do not fire or wait to be solved, those with a fact that ends with this transaction or did
    not take, those that serve a subject at a text's beginning, and those of staged pieces behind the first `pieces`.

    Raises:
        CorruptError: rows or arrays are damaged.
    """
    catalog, base = transaction.catalog, transaction.base
    error_of = error_for(catalog, base)
    staged = catalog.segments(None)

    def opened(records: Iterable[SegmentRecord]) -> list[Segment]:
        return [open_segment(transaction.root, one, transaction.d1, transaction.d2, error_of) for one in records]

    segments = opened([*catalog.segments(base), *staged[:pieces]])
    left_out = opened(record for record in staged[pieces:] if record.entries)
    before = int(left_out[0].entries[0]) if left_out else transaction.next_entry
    states = catalog.states(base)
    rows = catalog.all(
        f"SELECT * FROM facts WHERE (made IS NULL OR {VISIBLE}) AND residual = :kind AND entry < :before"
        " ORDER BY entry DESC, row LIMIT :limit",
        {"g": base, "kind": kind, "before": before, "limit": 2 * most},
    )
    targets: dict[int, tuple[str, ...]] = {}
    for entry, served in groupby(rows, lambda row: row["entry"]):
        mine = list(served)
        fits = all(row["took"] and not row["key_id"].endswith("@0") for row in mine)
        if fits and states.get(entry, "live") == "live" and not transaction.ended.intersection(r["row"] for r in mine):
            targets[entry] = tuple(_target(catalog, row) for row in mine)
            if len(targets) == most:
                break
    residuals = np.empty((len(targets), transaction.d2), np.float32)
    entries = np.array(sorted(targets), np.int64)
    found = np.zeros(len(entries), bool)
    for segment in segments:
        here = np.isin(entries, segment.entries)
        residuals[here] = segment.residuals(np.searchsorted(segment.entries, entries[here]))
        found |= here
    return [targets[entry] for entry in entries[found].tolist()], residuals[found]


def _target(catalog: Catalog, row: sqlite3.Row) -> str:
    """A fact's target with what stands before it; making a whole fact of the row would take ten times as long."""
    if '"separator"' in row["metadata"]:
        fact = catalog.fact(row, {})
        return fact.separator + fact.target
    text = row["prompt"].replace("{}", row["subject"], 1)
    return separator(text, row["target"]) + str(row["target"])
