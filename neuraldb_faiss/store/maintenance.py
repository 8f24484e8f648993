"""Rollback and compaction."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import numpy as np

from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.intact import Kept, check_catalog, column, error_for, open_segment
from neuraldb_faiss.store.records import Generation
from neuraldb_faiss.store.segments import Segment
from neuraldb_faiss.store.store import Store
from neuraldb_faiss.store.transaction import SEGMENT_ENTRIES, Transaction


def rollback(store: Store, generation: int, *, wait: float = 10.0) -> Generation:
    """Make a new generation equal to an old one; it can itself be rolled back.

    Raises:
        StoreError: there is no such generation, it was compacted away, or it is the current one.
    """
    with store.write(f"rollback --to {generation}", wait=wait) as tx:
        store.check_generation(generation)
        if generation == tx.base:
            raise StoreError(f"{store.root} is at generation {generation} already")
        catalog = store.catalog
        then = {"g": generation}
        current = {"g": tx.base, "then": generation}
        was = VISIBLE.replace(":g", ":then")
        tx.end(row["row"] for row in catalog.all(f"SELECT row FROM facts WHERE {VISIBLE} AND NOT ({was})", current))
        back = catalog.all(f"SELECT * FROM facts WHERE {was} AND NOT ({VISIBLE}) ORDER BY row", current)
        tx.insert(catalog.fact(row, {}) for row in back)
        states_then = catalog.states(generation)
        for row in catalog.all("SELECT DISTINCT entry FROM entry_states WHERE made > :g", then):
            tx.set_state(row["entry"], "live")
        for entry, state in states_then.items():  # dead, where it came later
            tx.set_state(entry, state)
        settings = catalog.settings(generation)
        for name, value in catalog.settings(tx.base).items():
            if settings.get(name) != value:  # None stands for a setting that there was not yet
                tx.set_setting(name, settings.get(name))
        return tx.commit()


def compact(store: Store, *, wait: float = 10.0) -> Generation:
    """Rewrite the segments without dead entries and end the history before now.

    Entry ids stay; key positions change, so the epoch does. Readers of older generations keep their arrays.

    Raises:
        CorruptError: what would be rewritten is not what was written; the facts concerned are named. Nothing has
            changed then.
    """
    with store.write("compact", wait=wait) as tx:
        check_catalog(tx.catalog)
        rewrite(tx)
        return tx.commit()


def rewrite(tx: Transaction, without: Collection[int] = ()) -> None:
    """Have the commit put fresh segments in the place of all old ones, leaving dead entries and the segments
    `without` behind, and start the history there."""
    catalog = tx.catalog
    records = catalog.segments(tx.base)
    error_of = error_for(catalog, tx.base)
    segments = [
        open_segment(tx.root, record, tx.d1, tx.d2, error_of) for record in records if record.segment not in without
    ]
    dead = np.array(sorted(e for e, s in catalog.states(tx.base).items() if s == "dead"), np.int64)
    for offset, group in enumerate(_groups(segments, dead), start=1):
        entries = sum(int(keep.sum()) for _, keep in group)
        keys = sum(int(keep[segment.key_rows].sum()) for segment, keep in group)
        prefixes = group[0][0].record.prefixes
        live = partial(column, kept=group, error_of=error_of)
        tx.add_segment(tx.write_columns(entries, keys, live, offset, prefixes))
    tx.replace_segments(record.segment for record in records)
    tx.set_setting("epoch", catalog.config(tx.base).epoch + 1)
    tx.set_setting("history_start", tx.generation)


def _groups(segments: list[Segment], dead: np.ndarray) -> list[list[Kept]]:
    """Neighbouring segments that fit into one of SEGMENT_ENTRIES live entries, each with its mask."""
    groups: list[list[Kept]] = []
    size = 0
    for segment in segments:
        keep = ~np.isin(segment.entries, dead)
        alive = int(keep.sum())
        if not alive:
            continue
        if groups and size + alive <= SEGMENT_ENTRIES and groups[-1][0][0].record.prefixes == segment.record.prefixes:
            groups[-1].append((segment, keep))
            size += alive
        else:
            groups.append([(segment, keep)])
            size = alive
    return groups
