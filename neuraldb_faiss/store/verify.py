"""Verification of files against their checksums, and of the catalog's consistency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.store import files
from neuraldb_faiss.store.digests import wrong_generations
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.row_checks import bad_rows
from neuraldb_faiss.store.segments import Segment, SegmentRecord
from neuraldb_faiss.store.store import Store

_TRIES = 5  # a commit meanwhile may have joined or compacted the very segments that were being read


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and which segment it spoils (None: the catalog)."""

    file: str
    what: str
    segment: int | None = None


def verify(store: Store, *, deep: bool = False) -> list[Problem]:
    """Check the folder; an empty list means all is well.

    Shallow: the catalog's structure, and that every array is there with the right type, shape and length.
    Deep: also the checksum of every array, the digest of every generation, that every row of every table can be read,
    and that rows refer to each other.
    """
    for _ in range(_TRIES):
        newest = store.generation
        problems: list[Problem] = []
        try:
            for problem in _verify(store, deep):
                problems.append(problem)
        except StoreError as error:  # a catalog so damaged that no more can be said
            problems.append(Problem(store.catalog.path.name, str(error)))
        if not problems or store.generation == newest:
            break
    return problems


def _verify(store: Store, deep: bool) -> Iterator[Problem]:
    catalog = store.catalog
    newest = store.generation
    try:
        result = catalog.one("PRAGMA integrity_check" if deep else "PRAGMA quick_check")
        if result != "ok":
            yield Problem(catalog.path.name, f"SQLite: {result}")
    except StoreError as error:
        yield Problem(catalog.path.name, str(error))
        return
    readable = True
    if deep:
        for what in bad_rows(catalog):
            readable = False
            yield Problem(catalog.path.name, what)
    store.check_generation(newest)
    whole = True
    for problem in _segments(store, newest, deep=deep):
        whole = False
        yield problem
    if not deep:
        return
    yield from _digests(store)
    if readable:
        yield from _references(store, newest, whole=whole)


def _segments(store: Store, generation: int, *, deep: bool) -> Iterator[Problem]:
    """What is wrong with the arrays that `generation` names."""
    config = store.config(generation)
    for record in store.catalog.segments(generation):
        try:
            Segment(store.root, record, config.d1, config.d2)
        except StoreError as error:
            yield Problem(f"segments/{record.name}", str(error), record.segment)
        if deep:
            yield from _checksums(store, record)


def _checksums(store: Store, record: SegmentRecord) -> Iterator[Problem]:
    for name, expected in record.files.items():
        path = store.root / "segments" / record.name / name
        try:
            found = files.sha256(files.within(store.root, path))
        except (OSError, StoreError) as error:
            yield Problem(f"segments/{record.name}/{name}", f"cannot be read ({error})", record.segment)
            continue
        if found != expected.get("sha256"):
            yield Problem(
                f"segments/{record.name}/{name}", "its bytes changed since it was written (checksum differs)",
                record.segment,
            )  # fmt: skip


def _digests(store: Store) -> Iterator[Problem]:
    for _, what in wrong_generations(store.catalog):
        yield Problem(store.catalog.path.name, what)


def _references(store: Store, newest: int, *, whole: bool) -> Iterator[Problem]:
    catalog = store.catalog
    last = catalog.generations()[-1]
    counted = catalog.count_facts(newest)
    if counted != last.facts:
        yield Problem(catalog.path.name, f"{counted} facts live, the generation says {last.facts}")
    if not whole:  # what damaged arrays say about entries is nothing to compare with
        return
    config = store.config(newest)
    known: set[int] = set()
    for record in catalog.segments(newest):
        segment = Segment(store.root, record, config.d1, config.d2)
        try:
            known.update(map(int, segment.entries))
            _ = segment.key_rows
        except StoreError as error:
            yield Problem(f"segments/{record.name}", str(error), record.segment)
            return
    used = {row["entry"] for row in catalog.all(f"SELECT DISTINCT entry FROM facts WHERE {VISIBLE}", {"g": newest})}
    states = catalog.states(newest)
    # An entry that lost its vectors to `repair` is suspended until it is solved anew.
    lost = {entry for entry in used - known if states.get(entry) == "suspended"}
    if gone := used - known - lost:
        yield Problem(catalog.path.name, f"{len(gone)} entries with facts but without vectors, first {min(gone)}")
    dead = {entry for entry, state in states.items() if state == "dead"}
    if odd := (known - dead) ^ (used - lost):
        yield Problem(catalog.path.name, f"{len(odd)} entries whose state does not fit their facts, first {min(odd)}")
