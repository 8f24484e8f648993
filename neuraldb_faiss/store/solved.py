"""Entries that are solved by now: those of the generation that a transaction starts from, and those it has staged."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import numpy as np

from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.intact import error_for, open_segment
from neuraldb_faiss.store.records import StoredFact
from neuraldb_faiss.store.segments import Segment, SegmentRecord
from neuraldb_faiss.store.transaction import Transaction


def solved_entries(
    transaction: Transaction, kind: str, pieces: int, most: int
) -> tuple[list[tuple[StoredFact, ...]], np.ndarray]:
    """The newest `most` entries with a residual of this kind: the facts of each, and their residuals float32 [n, d2].

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
    facts: dict[int, tuple[StoredFact, ...]] = {}
    for entry, served in groupby(rows, lambda row: row["entry"]):
        mine = list(served)
        fits = all(row["took"] and not row["key_id"].endswith("@0") for row in mine)
        if fits and states.get(entry, "live") == "live" and not transaction.ended.intersection(r["row"] for r in mine):
            facts[entry] = tuple(catalog.fact(row, {}) for row in mine)
            if len(facts) == most:
                break
    residuals = np.empty((len(facts), transaction.d2), np.float32)
    entries = np.array(sorted(facts), np.int64)
    found = np.zeros(len(entries), bool)
    for segment in segments:
        here = np.isin(entries, segment.entries)
        residuals[here] = segment.residuals(np.searchsorted(segment.entries, entries[here]))
        found |= here
    return [facts[entry] for entry in entries[found].tolist()], residuals[found]
