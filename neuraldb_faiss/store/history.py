"""Going back, and forgetting: rollback and compaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.store.catalog import VISIBLE
from neuraldb_faiss.store.records import Generation
from neuraldb_faiss.store.segments import Rows, Segment
from neuraldb_faiss.store.store import Store
from neuraldb_faiss.store.transaction import SEGMENT_ENTRIES, Transaction


def rollback(store: Store, generation: int, *, wait: float = 10.0) -> Generation:
    """Make a new generation equal to an old one; it can itself be rolled back.

    Raises:
        StoreError: there is no such generation, it was compacted away, or it is the current one.
    """
    with store.write(f"rollback --to {generation}", wait=wait) as tx:
        settings = store.check_generation(generation)
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
        for name, value in catalog.settings(tx.base).items():
            if settings.get(name) != value:  # None stands for a setting that there was not yet
                tx.set_setting(name, settings.get(name))
        return tx.commit()


def compact(store: Store, *, wait: float = 10.0) -> Generation:
    """Rewrite the segments without dead entries and end the history before now.

    Entry ids stay; key positions change, so the epoch does. Readers of older generations keep their arrays.
    """
    with store.write("compact", wait=wait) as tx:
        rewrite(tx)
        return tx.commit()


def rewrite(tx: Transaction, without: Collection[int] = ()) -> None:
    """Have the commit put fresh segments in the place of all old ones, leaving dead entries and the segments
    `without` behind, and start the history there."""
    catalog = tx.catalog
    records = catalog.segments(tx.base)
    segments = [Segment(tx.root, record, tx.d1, tx.d2) for record in records if record.segment not in without]
    dead = np.array(sorted(e for e, s in catalog.states(tx.base).items() if s == "dead"), np.int64)
    for offset, group in enumerate(_groups(segments, dead), start=1):

        def chunks(group: list[tuple[Segment, np.ndarray]] = group) -> Iterable[Rows]:
            for segment, keep in group:
                at = 0
                for rows in segment.chunks():
                    yield rows.select(keep[at : at + len(rows.entries)])
                    at += len(rows.entries)

        entries = sum(int(keep.sum()) for _, keep in group)
        keys = sum(int(keep[segment.key_rows].sum()) for segment, keep in group)
        prefixes = group[0][0].record.prefixes
        tx.add_segment(tx.new_segment(entries, keys, chunks, offset, prefixes))
    tx.replace_segments(record.segment for record in records)
    tx.set_setting("epoch", catalog.settings(tx.base)["epoch"] + 1)
    tx.set_setting("history_start", tx.generation)


def _groups(segments: list[Segment], dead: np.ndarray) -> list[list[tuple[Segment, np.ndarray]]]:
    """Neighbouring segments that fit into one of SEGMENT_ENTRIES live entries, each with its mask."""
    groups: list[list[tuple[Segment, np.ndarray]]] = []
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
