"""A generation of a database as one file: facts as JSON lines, or everything as safetensors. Streamed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.exchange.layout import TENSORS, Sizes, fact_line, header, metadata, plain_line
from neuraldb_faiss.store import Segment, Store, StoredFact, atomic, files

FORMATS = ("jsonl", "safetensors")
_BATCH = 1 << 20  # bytes of lines that are written at once


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the generation, its facts (lines of JSON), bytes."""

    generation: int
    facts: int
    bytes: int


def export(store: Store, out: str | Path | BinaryIO, format: str = "jsonl", *, at: int | None = None) -> Exported:
    """Write a generation of `store` to a new file, or to an open one.

    Args:
        out: a path that is free, which appears when all is written; or a binary stream.
        format: "jsonl", the facts as `read_facts` reads them; "safetensors", with all that the database knows of them
            and their vectors (docs/exchange.md describes it to the byte). The same generation gives the same bytes.
        at: the generation; the newest by default.

    Raises:
        StoreError: no such generation or format, `out` is there already, or the disk fails. Nothing is left of it then.
        CorruptError: the database is damaged.
    """
    if format not in FORMATS:
        raise StoreError(f"unknown export format {format!r}; choose one of {', '.join(FORMATS)}")
    generation = store.generation if at is None else at
    store.check_generation(generation)
    blocks = _jsonl(store, generation) if format == "jsonl" else _safetensors(store, generation)
    written = _write_stream(out, blocks) if not isinstance(out, (str, Path)) else _write_file(Path(out), blocks)
    return Exported(generation, store.catalog.generation_record(generation).facts, written)


def _write_stream(out: BinaryIO, blocks: Iterable[memoryview]) -> int:
    written = 0
    for block in blocks:
        files.write(out, block)
        written += len(block)
    out.flush()
    return written


def _write_file(path: Path, blocks: Iterable[memoryview]) -> int:
    """Write it beside its name and rename it when it is whole and on the disk."""
    if os.path.lexists(path):
        raise StoreError(f"{path} is there already: name a new file, or remove it")
    try:
        with atomic.replacing(path) as file:
            written = _write_stream(file, blocks)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}; nothing was exported") from error
    return written


def _jsonl(store: Store, generation: int) -> Iterator[memoryview]:
    return _joined(plain_line(fact) for fact in store.catalog.facts(generation))


def _joined(lines: Iterable[bytes]) -> Iterator[memoryview]:
    """Lines in larger blocks."""
    block = bytearray()
    for line in lines:
        block += line
        if len(block) >= _BATCH:
            yield memoryview(bytes(block))
            block.clear()
    if block:
        yield memoryview(bytes(block))


def _safetensors(store: Store, generation: int) -> Iterator[memoryview]:
    """Dead entries stay behind: a removed fact's vectors do not go along."""
    settings = store.settings(generation)
    segments = store.snapshot(generation).segments
    dead = np.array([e for e, state in store.catalog.states(generation).items() if state == "dead"], np.int64)
    kept = [(segment, ~np.isin(segment.entries, dead)) for segment in segments]
    kept = [(segment, keep) for segment, keep in kept if keep.any()]
    _check_order(store, kept)

    def lines() -> Iterator[bytes]:
        return (_line(store, fact) for fact in store.catalog.facts(generation, every_row=True))

    sizes = Sizes(
        entry=sum(int(keep.sum()) for _, keep in kept),
        key=sum(int(keep[segment.key_rows].sum()) for segment, keep in kept),
        byte=sum(map(len, lines())),  # the header says how long they are: they are made twice, and never held
        d1=settings["d1"],
        d2=settings["d2"],
    )
    yield memoryview(header(sizes, metadata(generation, settings, _runs(kept))))
    for name, (dtype, _, _) in TENSORS.items():
        blocks = _joined(lines()) if name == "facts" else _column(name, dtype, kept)
        want = int(np.prod(sizes.shape(name), dtype=np.int64)) * np.dtype(dtype).itemsize
        for block in blocks:
            want -= len(block)
            yield block
        if want:
            raise StoreError(f"{store.root} was compacted while generation {generation} was exported: export again")


def _line(store: Store, fact: StoredFact) -> bytes:
    try:
        return fact_line(fact)
    except ValueError as error:
        raise CorruptError(f"{store.root}: the fact {fact.id!r} holds a value that JSON has not ({error})") from None


def _check_order(store: Store, kept: list[tuple[Segment, np.ndarray]]) -> None:
    last = -1
    for segment, keep in kept:
        entries = segment.entries[keep]
        if entries[0] <= last:
            raise CorruptError(f"{segment.folder / 'entries.npy'}: its ids do not follow those of the segments before")
        last = int(entries[-1])


def _runs(kept: list[tuple[Segment, np.ndarray]]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(entries, prefixes) of neighbouring segments with the same prefixes."""
    for prefixes, group in groupby(kept, key=lambda one: one[0].record.prefixes):
        yield sum(int(keep.sum()) for _, keep in group), prefixes


def _column(name: str, dtype: str, kept: list[tuple[Segment, np.ndarray]]) -> Iterator[memoryview]:
    """The rows of one array over all segments, in the pieces in which they lie in memory."""
    of_keys = TENSORS[name][1] == "key"
    first = 0
    for segment, keep in kept:
        if name == "residuals":
            segment.read_in_order()
        at = 0
        new_row = (first + np.cumsum(keep) - 1).astype(np.int32)  # the row of each entry in the file
        for rows in segment.chunks():
            here = slice(at, at + len(rows.entries))
            mask = keep[here][rows.key_rows] if of_keys else keep[here]
            array = new_row[here][rows.key_rows] if name == "key_rows" else getattr(rows, name)
            if not mask.all():
                array = array[mask]
            if array.size:
                yield np.ascontiguousarray(array, dtype).data.cast("B")
            at = here.stop
        first += int(keep.sum())
