"""Joining small segments when a change commits, as log-structured stores do: 20,000 changes leave some 40 segments.

What is joined is always the newest few segments, in their order, so key positions stay. Their rows stay too, the dead
ones among them: every generation that could be looked at still can be. Each row is written once for each power of `FAN`
that the number of changes grows by.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.store.digests import first_wrong
from neuraldb_faiss.store.segments import SegmentRecord

if TYPE_CHECKING:
    from neuraldb_faiss.store.transaction import Transaction

FAN = 8  # segments of one size, or smaller, that are joined into one
FULL = 64 << 20  # bytes of arrays; a segment of so many is left alone, so no change writes much more than FAN times it
SPAN = 8_192  # generations that one join may reach back over: their digests are computed anew


@dataclass(frozen=True)
class Joined:
    """`whole`, written and not yet named in the catalog, takes the place of the segments `parts`, of which the first
    was made by the generation `first`."""

    parts: frozenset[int]
    whole: SegmentRecord
    first: int


def how_many(segments: Sequence[SegmentRecord], d1: int, d2: int, generation: int) -> int:
    """How many of the last segments should become one; 0 for none.

    So many that afterwards, before any segment, fewer than FAN stand that are of its size class or below.

    Args:
        segments: in their order, with their `made`.
        generation: the one that is being made.
    """
    sizes = []
    for segment in reversed(segments):
        near = segment.made is not None and generation - segment.made < SPAN
        if is_full(segment, d1, d2) or not near or segment.prefixes != segments[-1].prefixes:
            break
        sizes.append(_size(segment, d1, d2))
    count, total = min(1, len(sizes)), sum(sizes[:1])
    while True:
        run = count
        while run < len(sizes) and _size_class(sizes[run]) <= _size_class(total):
            run += 1
        if run - count < FAN - 1 or total >= FULL:
            return count if count > 1 else 0
        count, total = run, sum(sizes[:run])


def is_full(segment: SegmentRecord, d1: int, d2: int) -> bool:
    """Whether it stays what it is until a compaction."""
    return _size(segment, d1, d2) >= FULL


def _size(segment: SegmentRecord, d1: int, d2: int) -> int:
    return 2 * (d1 * segment.keys + d2 * segment.entries)


def _size_class(size: int) -> int:
    return size.bit_length() // (FAN.bit_length() - 1)


def join_small(tx: Transaction, segments: Sequence[SegmentRecord]) -> Joined | None:
    """Write the segment that takes the place of the last few of `segments`; None where there is nothing to join.

    What is damaged is not joined, for it would be whole by the checksums that it gets: a warning names it.
    """
    usable = list(segments)
    while count := how_many(usable, tx.d1, tx.d2, tx.generation):
        parts = usable[-count:]
        first = min(part.made for part in parts if part.made is not None)
        if (wrong := first_wrong(tx.catalog, first, tx.base)) is not None:
            _warn(tx, f"{tx.catalog.path}: rows of generation {wrong} changed since they were written")
            return None
        try:
            whole = tx.write_as_one(parts, segments[-1].segment + 1 - tx.catalog.counter("segments"), _Damaged)
        except _Damaged as error:
            _warn(tx, str(error))
            usable = [one for one in segments if one.segment > error.record.segment]
        else:
            return Joined(frozenset(part.segment for part in parts), replace(whole, made=first), first)
    return None


class _Damaged(CorruptError):
    def __init__(self, record: SegmentRecord, what: str) -> None:
        super().__init__(what)
        self.record = record


def _warn(tx: Transaction, what: str) -> None:
    warnings.warn(f"{what}; see `neuraldb verify {tx.root} --deep`", stacklevel=5)
