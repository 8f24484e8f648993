"""Checks before data is copied, rewritten or exported: it must match the catalog's digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import files
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.digests import wrong_generations
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.segments import ARRAYS, Segment, SegmentRecord

_CHANGED = "its bytes changed since it was written (checksum differs)"
_TRIES = 10
_SHOWN = 5  # facts in a message
_BLOCK = 1 << 24  # bytes of an array that are read and hashed at once

Kept = tuple[Segment, np.ndarray]  # a segment, and which of its entries are wanted (bool [m])
ErrorOf = Callable[[SegmentRecord, str], CorruptError]  # a segment, and what is wrong with it -> the error


def check_catalog(catalog: Catalog, root: Path | None = None) -> None:
    """Whether the rows of every generation that is kept are those that were written. `root`: the folder to name, where
    it is a copy that is looked at.

    Raises:
        CorruptError: they are not; the message says how to go on.
    """
    root = root or catalog.root
    for _ in range(_TRIES):
        newest = catalog.generation
        wrong = next(wrong_generations(catalog), None)
        if wrong is None:
            return
        if catalog.generation == newest:  # else a commit may have joined segments meanwhile
            break
    assert wrong is not None
    raise CorruptError(
        f"{root / catalog.path.name}: {wrong[1]}. Restore the folder from a copy, or save the texts that can be read"
        f" (`neuraldb export {root} --skip-bad`) and build anew"
    )


def check_file(path: Path, copy: Path, record: SegmentRecord, error_of: ErrorOf) -> None:
    """Whether the copy of a segment's file `path` is what was written; else raises what `error_of` makes."""
    if files.sha256(copy) != record.files[path.name]["sha256"]:
        raise error_of(record, f"{path}: {_CHANGED}")


def error_for(catalog: Catalog, generation: int) -> ErrorOf:
    """What makes the error for a damaged segment: it names the facts of `generation` that it serves."""

    def told(record: SegmentRecord, what: str) -> CorruptError:
        return CorruptError(
            f"{what}. {_served(catalog, generation, record)}. Restore the folder from a copy, or go on without them:"
            f" `neuraldb verify {catalog.root} --deep --repair` takes the segment out of service; then they wait for"
            " `neuraldb solve`, or go with `neuraldb remove`"
        )

    return told


def open_segment(root: Path, record: SegmentRecord, d1: int, d2: int, error_of: ErrorOf) -> Segment:
    """The segment, its numbers checked (see `check_numbers`); what is wrong with it raises what `error_of` makes."""
    try:
        segment = Segment(root, record, d1, d2)
    except StoreError as error:
        raise error_of(record, str(error)) from None
    check_numbers(segment, error_of)
    return segment


def check_numbers(segment: Segment, error_of: ErrorOf) -> None:
    """Whether the ids of a segment's entries, and the rows of its keys, are as they were written: all else is read by
    these. What is wrong with them raises what `error_of` makes."""
    for name in ("entries", "key_rows"):
        for _ in _hashed(segment, name, error_of):
            pass
    try:
        _ = segment.entries, segment.key_rows
    except CorruptError as error:
        raise error_of(segment.record, str(error)) from None


def column(name: str, kept: Sequence[Kept], error_of: ErrorOf) -> Iterator[np.ndarray]:
    """The rows of one of `ARRAYS` that belong to the wanted entries, over some segments, in blocks.

    `key_rows` are numbered over all that is wanted. Every file is hashed as it is read, also where little of it is
    wanted, and compared with the catalog when it has been read: whoever publishes what this yields must have read it to
    its end.
    """
    of_keys = ARRAYS[name][1] == "key"
    first = 0
    for segment, keep in kept:
        wanted = keep[segment.key_rows] if of_keys else keep
        new_rows = (first + np.cumsum(keep) - 1).astype(np.int32)  # the row of each entry among all that is wanted
        if name == "residuals":
            segment.read_in_order()
        for at, block in _hashed(segment, name, error_of):
            mask = wanted[at : at + len(block)]
            rows = new_rows[segment.key_rows[at : at + len(block)]] if name == "key_rows" else block
            if mask.any():
                yield rows if mask.all() else rows[mask]
        first += int(keep.sum())


def _hashed(segment: Segment, name: str, error_of: ErrorOf) -> Iterator[tuple[int, np.ndarray]]:
    """(row of its first, rows as stored) of one array, in blocks."""
    array = segment.stored(name)
    path = segment.folder / f"{name}.npy"
    digest = hashlib.sha256(segment.headers[name])  # not from the file: a commit may have joined it since
    step = max(1, _BLOCK // max(1, array.nbytes // max(1, len(array))))
    for at in range(0, len(array), step):
        block = array[at : at + step]
        digest.update(np.ascontiguousarray(block).data.cast("B"))
        yield at, block
    if digest.hexdigest() != segment.record.files[path.name]["sha256"]:
        raise error_of(segment.record, f"{path}: {_CHANGED}")


def _served(catalog: Catalog, generation: int, record: SegmentRecord) -> str:
    """Says which facts a segment serves: the first few, and how many there are."""
    entries = _entries(catalog.root, record)
    if entries is None:  # those that no other segment holds
        others = (_entries(catalog.root, other) for other in catalog.segments(generation) if other != record)
        elsewhere = {entry for some in others if some is not None for entry in some}
        rows = catalog.all(f"SELECT DISTINCT entry FROM facts WHERE {VISIBLE}", {"g": generation})
        entries = [row["entry"] for row in rows if row["entry"] not in elsewhere]
    found: Mapping[str, str] = {
        row["identity"]: f"{_clip(row['subject'])} ({_clip(row['id'])})"
        for row in catalog.all(
            f"SELECT identity, subject, id FROM facts WHERE {VISIBLE} AND entry IN (SELECT value FROM json_each(:e))"
            " ORDER BY row", {"g": generation, "e": json.dumps(list(entries))},
        )
    }  # fmt: skip
    if not found:
        return "It serves no live fact"
    more = f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else ""
    facts = "1 fact" if len(found) == 1 else f"{len(found):,} facts"
    return f"It serves {facts}: {', '.join(list(found.values())[:_SHOWN])}{more}"


def _entries(root: Path, record: SegmentRecord) -> Iterable[int] | None:
    """The ids of a segment's entries; None where they cannot be trusted."""
    path = root / "segments" / record.name / "entries.npy"
    try:
        files.within(root, path)
        if files.sha256(path) != record.files[path.name]["sha256"]:
            return None
        ids: list[int] = files.open_array(path, "<i8", (record.entries,)).tolist()
    except (OSError, StoreError):
        return None
    return ids


def _clip(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
