"""Merging databases: segments are copied or linked as they are, rows by SQL, clashes settled in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neuraldb_faiss.errors import ConflictError, StoreError
from neuraldb_faiss.store import files
from neuraldb_faiss.store.catalog import FIRING
from neuraldb_faiss.store.records import FACT_COLUMNS, Generation, StoredFact, canonical, from_row
from neuraldb_faiss.store.segments import ARRAYS, Manifest, SegmentRecord, write_segment_files
from neuraldb_faiss.store.store import Store
from neuraldb_faiss.store.transaction import Transaction

# Facts that will live after the commit: what lives now, and what is staged.
PRESENT = "((made <= :g AND (ended IS NULL OR ended > :g)) OR made IS NULL)"

SolveGroups = Callable[[Transaction, list[list[StoredFact]]], None]


@dataclass(frozen=True)
class Merged:
    """What a merge did: its generation, conflicts decided by order, entries left to be solved."""

    generation: Generation
    conflicts: int
    waiting: int


def merge_into(
    target: Store,
    sources: Sequence[Store],
    *,
    on_conflict: str = "error",
    link: bool = False,
    solve: SolveGroups | None = None,
    settings: Mapping[str, object] | None = None,
    command: str = "merge",
    wait: float = 10.0,
) -> Merged:
    """Add every live fact of `sources` to `target`, in one generation. That they fit is the caller's to check.

    A fact with the subject and prompt of another but another target is a conflict: "error" refuses the merge,
    "first" and "last" choose by the order target, sources. The same fact twice becomes one that keeps both sources.
    Facts of several entries with one key are solved jointly by `solve`, or else left contested, waiting.

    Args:
        settings: to hold from this generation on.
        link: hard-link the arrays instead of copying them (same file system).

    Raises:
        ConflictError: lists the first ten and the count; nothing has changed.
        StoreError: a source is the target, or a file cannot be copied or linked.
    """
    if any(source.root.resolve() == target.root.resolve() for source in sources):
        raise StoreError(f"{target.root} cannot be merged into itself")

    def stage(tx: Transaction) -> None:
        for source in sources:
            _copy(tx, source, link)

    return merge_staged(
        target, stage, on_conflict=on_conflict, solve=solve, settings=settings, command=command, wait=wait
    )


def merge_staged(
    target: Store,
    stage: Callable[[Transaction], None],
    *,
    on_conflict: str,
    solve: SolveGroups | None,
    settings: Mapping[str, object] | None,
    command: str,
    wait: float,
) -> Merged:
    """`merge_into` where `stage` brings in what is to be merged: whole segments and the facts they serve."""
    with target.write(command, wait=wait) as tx:
        tx.restart()  # after a kill too: copying is quick
        try:
            stage(tx)
            conflicts = _settle_conflicts(tx, on_conflict)
            _settle_shared_keys(tx, solve)
        except BaseException:
            tx.drop()
            raise
        now = target.settings(tx.generation)
        for name, value in (settings or {}).items():
            if now.get(name) != value:
                tx.set_setting(name, value)
        generation = tx.commit()
        waiting = sum(state != "dead" for state in target.catalog.states(generation.generation).values())
        return Merged(generation, conflicts, waiting)


def _copy(tx: Transaction, source: Store, link: bool) -> None:
    """Stage the segments and the live rows of one source, its entry ids moved past ours."""
    generation = source.generation
    shift = tx.catalog.counter("entries")
    segments = source.catalog.segments(generation)
    for record in segments:
        copied = _copy_segment(tx, source.root, record, shift, link)
        with tx.catalog.transaction():
            tx.catalog.put_segment(copied)
            tx.catalog.set_counter("segments", copied.segment)
    columns = ", ".join(FACT_COLUMNS)
    moved = columns.replace("entry", ":shift + entry")
    with tx.catalog.attached(source.catalog.path) as other, tx.catalog.transaction():
        tx.catalog.run(
            f"INSERT INTO facts ({columns}, made) SELECT {moved}, NULL FROM {other}.facts"
            " WHERE made <= :g AND (ended IS NULL OR ended > :g) ORDER BY row",
            {"g": generation, "shift": shift},
        )
        tx.catalog.set_counter("entries", shift + source.catalog.counter("entries"))
    for entry, state in source.catalog.states(generation).items():
        tx.set_state(shift + entry, state)


def _copy_segment(tx: Transaction, root: Path, record: SegmentRecord, shift: int, link: bool) -> SegmentRecord:
    number = tx.catalog.counter("segments") + 1
    old = root / "segments" / record.name
    new = replace(record, segment=number, made=None)

    def fill(folder: Path) -> Manifest:
        manifest = dict(record.files)
        for name in (f"{array}.npy" for array in ARRAYS if array != "entries"):
            files.copy_file(files.within(root, old / name), folder / name, link=link)
        entries = files.map_array(files.within(root, old / "entries.npy"), "<i8", (record.entries,))
        manifest["entries.npy"] = files.write_array(
            folder / "entries.npy", "<i8", (record.entries,), [np.asarray(entries) + shift]
        )
        return manifest

    return replace(new, files=write_segment_files(tx.root / "segments" / new.name, fill))


def _settle_conflicts(tx: Transaction, on_conflict: str) -> int:
    """End the losing rows of every fact with several targets; how many such facts there were."""
    catalog, g = tx.catalog, {"g": tx.base}
    clashing = (
        f"SELECT identity FROM facts WHERE {PRESENT} GROUP BY identity HAVING COUNT(DISTINCT target) > 1"
    )
    number = catalog.one(f"SELECT COUNT(*) FROM ({clashing})", g)
    if number and on_conflict == "error":
        rows = catalog.all(
            f"SELECT DISTINCT subject, prompt, target FROM facts WHERE {PRESENT} AND identity IN"
            f" ({clashing} ORDER BY identity LIMIT 10) ORDER BY identity, row", g,
        )  # fmt: skip
        first = "; ".join(f"{r['prompt'].replace('{}', r['subject'])!r} -> {r['target']!r}" for r in rows)
        raise ConflictError(
            f"{number} facts have another target in another database (choose with --on-conflict first or last): {first}"
        )
    if number:
        pick = {"first": "MIN", "last": "MAX"}[on_conflict]
        losers = catalog.all(
            f"SELECT row FROM facts WHERE {PRESENT} AND identity IN ({clashing}) AND target <>"
            f" (SELECT target FROM facts AS w WHERE w.row = (SELECT {pick}(row) FROM facts AS x"
            f"  WHERE x.identity = facts.identity AND {PRESENT}))", g,
        )  # fmt: skip
        tx.end(row["row"] for row in losers)
    return int(number)


def _settle_shared_keys(tx: Transaction, solve: SolveGroups | None) -> None:
    """Where several entries have one key: keep one that serves all their facts, or solve, or let them wait."""
    catalog, g = tx.catalog, {"g": tx.base}
    shared = catalog.all(
        f"SELECT key_id FROM facts WHERE {PRESENT} GROUP BY key_id HAVING COUNT(DISTINCT entry) > 1"
        " ORDER BY MIN(row)", g,
    )
    states = {**catalog.states(tx.base), **tx.states}
    to_solve: list[list[StoredFact]] = []
    for (key_id,) in shared:
        rows = catalog.all(f"SELECT * FROM facts WHERE {PRESENT} AND key_id = :k ORDER BY row", {**g, "k": key_id})
        facts = [from_row(row, states) for row in rows if row["row"] not in tx.ended]
        served: dict[int, set[str]] = {}
        for fact in facts:
            served.setdefault(fact.entry, set()).add(fact.identity)
        broken = {row["entry"] for row in rows if row["row"] in tx.ended}
        everything = set().union(*served.values()) if served else set()
        whole = [
            entry
            for entry, identities in served.items()
            if identities == everything and entry not in broken and states.get(entry, "live") in FIRING
        ]
        if len(served) == 1 and whole:
            continue
        if whole:
            _keep_one(tx, facts, whole[0])
        elif solve is not None:
            _join_sources(tx, facts)
            to_solve.append(_unique(facts))
            tx.end(fact.row for fact in facts if fact.row is not None)
        else:
            _join_sources(tx, facts)
            for entry in served:
                if entry not in broken and states.get(entry, "live") in FIRING:
                    tx.set_state(entry, "contested")
    if to_solve and solve is not None:
        solve(tx, to_solve)


def _keep_one(tx: Transaction, facts: Sequence[StoredFact], entry: int) -> None:
    _join_sources(tx, facts)
    tx.set_state(entry, "live")
    tx.end(fact.row for fact in facts if fact.entry != entry and fact.row is not None)


def _join_sources(tx: Transaction, facts: Sequence[StoredFact]) -> None:
    """Rows of one fact all get the union of its sources, so whichever of them is shown says the same."""
    by_identity: dict[str, list[StoredFact]] = {}
    for fact in facts:
        by_identity.setdefault(fact.identity, []).append(fact)
    for same in by_identity.values():
        union = tuple(sorted({source for fact in same for source in fact.sources}))
        for fact in same:
            if fact.sources == union or fact.row is None:
                continue
            if fact.made is None:
                tx.catalog.run("UPDATE facts SET sources = ? WHERE row = ?", (canonical(union), fact.row))
            else:  # published rows never change: this one ends and a copy takes its place
                tx.end([fact.row])
                tx.insert([replace(fact, sources=union)])


def _unique(facts: Iterable[StoredFact]) -> list[StoredFact]:
    """One record a fact, with the sources of all its rows."""
    found: dict[str, StoredFact] = {}
    for fact in facts:
        sources = tuple(sorted({*fact.sources, *(found[fact.identity].sources if fact.identity in found else ())}))
        found[fact.identity] = replace(found.get(fact.identity, fact), sources=sources)
    return list(found.values())

