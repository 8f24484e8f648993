"""Merging databases: segments are copied or linked as they are, rows by SQL, clashes settled in one transaction."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neuraldb_faiss.errors import ConflictError, StoreError
from neuraldb_faiss.options import WAIT
from neuraldb_faiss.store import files
from neuraldb_faiss.store.catalog import FIRING
from neuraldb_faiss.store.intact import ErrorOf, check_catalog, check_file, error_for
from neuraldb_faiss.store.joining import is_full
from neuraldb_faiss.store.records import Generation, StoredFact, canonical
from neuraldb_faiss.store.row_checks import check_live
from neuraldb_faiss.store.segments import ARRAYS, SegmentRecord, begin_folder, seal_folder
from neuraldb_faiss.store.store import Store
from neuraldb_faiss.store.transaction import Transaction

# Facts that will live after the commit, g being its generation: what lives now, and what is staged or inserted.
PRESENT = "((made <= :g AND (ended IS NULL OR ended > :g)) OR made IS NULL)"

SolveGroups = Callable[[Transaction, list[list[StoredFact]]], None]


@dataclass(frozen=True)
class Settling:
    """How a merge settles what clashes.

    Attributes:
        on_conflict: which target wins where two are given for one subject and prompt: "error" refuses the merge,
            "first" and "last" choose by the order target, sources.
        solve: solves the facts of several entries with one key jointly; without, they are left contested, waiting.
        settings: to hold from the merged generation on.
    """

    on_conflict: str = "error"
    solve: SolveGroups | None = None
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Merged:
    """What a merge did: its generation, conflicts decided by order, entries left to be solved."""

    generation: Generation
    conflicts: int
    waiting: int


def merge_into(
    target: Store,
    sources: Sequence[Store],
    settling: Settling = Settling(),
    *,
    link: bool = False,
    command: str = "merge",
    wait: float = WAIT,
) -> Merged:
    """Add every live fact of `sources` to `target`, in one generation. That they fit is the caller's to check.

    A fact with the subject and prompt of another but another target is a conflict. The same fact twice becomes one
    that keeps both sources.

    Args:
        settling: how conflicts, and facts that come to share a key, are settled.
        link: hard-link the arrays instead of copying them (same file system).

    Raises:
        ConflictError: lists the first ten and the count; nothing has changed.
        CorruptError: rows or arrays of a source are not what was written; the facts concerned are named.
        StoreError: a source is the target, or a file cannot be copied or linked.
    """
    if any(source.root.resolve() == target.root.resolve() for source in sources):
        raise StoreError(f"{target.root} cannot be merged into itself")

    for source in sources:
        check_catalog(source.catalog)
        check_live(source.catalog)
    with target.write(command, wait=wait) as tx, ThreadPoolExecutor(1, "copying") as pool:
        tx.restart()  # after a kill too: copying is quick
        copies = _Copies(tx)
        try:
            for source in sources:
                copies.begin(source, link, pool)
            tx.catalog.gather(copies.rows)
            # Nobody reads a new database yet, so all may be one transaction while a thread copies, in the kernel: no
            # row is written twice. Elsewhere no lock is held while files are copied.
            together = tx.base == 0 and settling.solve is None
            if not together:
                copies.finish()
            with tx.catalog.transaction() if together else nullcontext():
                copies.stage(tx.generation if together else None)
                merged = _settle(tx, settling)
                copies.finish()
        except BaseException:
            copies.stop()
            if tx.catalog.generation == tx.base:
                tx.drop()
            raise
    return merged


def merge_staged(
    target: Store, stage: Callable[[Transaction], None], settling: Settling, *, command: str, wait: float
) -> Merged:
    """`merge_into` where `stage` brings in what is to be merged: whole segments and the facts they serve."""
    with target.write(command, wait=wait) as tx:
        tx.restart()
        try:
            stage(tx)
            return _settle(tx, settling)
        except BaseException:
            if tx.catalog.generation == tx.base:
                tx.drop()
            raise


def _settle(tx: Transaction, how: Settling) -> Merged:
    """Decide what clashes and commit."""
    conflicts = _settle_conflicts(tx, how.on_conflict)
    _settle_shared_keys(tx, how.solve)
    now = tx.catalog.settings(tx.generation)
    for name, value in how.settings.items():
        if now.get(name) != value:
            tx.set_setting(name, value)
    generation = tx.commit()
    waiting = sum(state != "dead" for state in tx.catalog.states(generation.generation).values())
    return Merged(generation, conflicts, waiting)


class _Copies:
    """The segments and the live rows of the sources, their entry ids moved past ours."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._shift, self._number = tx.catalog.counter("entries"), tx.catalog.counter("segments")
        self._records: list[SegmentRecord] = []
        self._copying: list[Future[None]] = []
        self.rows: list[tuple[Path, int, int]] = []  # for `Catalog.gather`

    def begin(self, source: Store, link: bool, pool: ThreadPoolExecutor) -> None:
        """Copy the small arrays of one more source, and have the pool copy the large ones."""
        while True:
            generation = source.generation
            try:
                records, large = self._begin(source, generation, link)
                break
            except (StoreError, FileNotFoundError):
                if source.generation == generation:  # else a commit there has joined what was being copied
                    raise
        self._records += records
        self._copying += [pool.submit(finish) for finish in large]
        self._number += len(records)
        self.rows.append((source.catalog.path, generation, self._shift))
        for entry, state in source.catalog.states(generation).items():
            self._tx.set_state(self._shift + entry, state)
        self._shift += source.catalog.counter("entries")

    def _begin(
        self, source: Store, generation: int, link: bool
    ) -> tuple[list[SegmentRecord], list[Callable[[], None]]]:
        """What the catalog will say of its segments, and what completes the large ones."""
        records, large = [], []
        error_of = error_for(source.catalog, generation)
        for number, record in enumerate(source.catalog.segments(generation), start=self._number + 1):
            staged, finish = _begin_segment(self._tx, source.root, record, number, self._shift, link, error_of)
            records.append(staged)
            if is_full(record, self._tx.d1, self._tx.d2):
                large.append(finish)
            else:
                finish()
        return records, large

    def stage(self, made: int | None) -> None:
        """Name all of it in the catalog."""
        catalog = self._tx.catalog
        with catalog.transaction():
            catalog.take(made)
            for staged in self._records:
                catalog.put_segment(staged)
            catalog.set_counter("segments", self._number)
            catalog.set_counter("entries", self._shift)

    def finish(self) -> None:
        """Wait; raises what went wrong."""
        for one in self._copying:
            one.result()

    def stop(self) -> None:
        for one in self._copying:
            one.cancel()
        wait_for(self._copying)


def _begin_segment(
    tx: Transaction, root: Path, record: SegmentRecord, number: int, shift: int, link: bool, error_of: ErrorOf
) -> tuple[SegmentRecord, Callable[[], None]]:
    """What the catalog will say of the copy, and what completes it: the only array that changes is written already."""
    new = replace(record, segment=number, made=None)
    old, folder = root / "segments" / record.name, tx.root / "segments" / new.name
    temporary = begin_folder(folder)
    path = files.within(root, old / "entries.npy")
    entries = np.array(files.open_array(path, "<i8", (record.entries,)))
    check_file(path, path, record, error_of)
    moved = files.write_array(temporary / "entries.npy", "<i8", (record.entries,), [entries + shift])

    def finish() -> None:
        for name in (f"{array}.npy" for array in ARRAYS if array != "entries"):
            files.copy_file(files.within(root, old / name), temporary / name, link=link)
            check_file(old / name, temporary / name, record, error_of)
        seal_folder(temporary, folder)

    return replace(new, files={**record.files, "entries.npy": moved}), finish


def _settle_conflicts(tx: Transaction, on_conflict: str) -> int:
    """End the losing rows of every fact with several targets; how many such facts there were."""
    catalog, g = tx.catalog, {"g": tx.generation}
    # The index alone tells which few facts have several rows.
    clashing = (
        f"SELECT identity FROM facts WHERE {PRESENT} AND {_several('identity')}"
        " GROUP BY identity HAVING COUNT(DISTINCT target) > 1"
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


def _several(column: str) -> str:
    return f"{column} IN (SELECT {column} FROM facts GROUP BY {column} HAVING COUNT(*) > 1)"


def _settle_shared_keys(tx: Transaction, solve: SolveGroups | None) -> None:
    """Where several entries have one key: keep one that serves all their facts, or solve, or let them wait."""
    catalog, g = tx.catalog, {"g": tx.generation}
    shared = catalog.all(
        f"SELECT key_id FROM facts WHERE {PRESENT} AND {_several('key_id')}"
        " GROUP BY key_id HAVING COUNT(DISTINCT entry) > 1 ORDER BY MIN(row)",
        g,
    )
    to_solve: list[list[StoredFact]] = []
    for (key_id,) in shared:
        rows = catalog.all(f"SELECT * FROM facts WHERE {PRESENT} AND key_id = :k ORDER BY row", {**g, "k": key_id})
        states = ChainMap(tx.states, catalog.states_of(tx.base, {row["entry"] for row in rows}))
        facts = [catalog.fact(row, states) for row in rows if row["row"] not in tx.ended]
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
            if fact.made in (None, tx.generation):
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
