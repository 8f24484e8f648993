"""Streaming export of one generation: facts as JSON lines, or everything as safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

import numpy as np

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.exchange.layout import TENSORS, Sizes, fact_line, header, metadata, plain_line
from neuraldb_faiss.store import Segment, Store, StoredFact, atomic, files
from neuraldb_faiss.store.intact import ErrorOf, Kept, check_catalog, check_numbers, column, error_for, open_segment

FORMATS = ("jsonl", "safetensors")
_BATCH = 1 << 20  # bytes of lines that are written at once


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the generation, its facts (lines of JSON), bytes."""

    generation: int
    facts: int
    bytes: int


def export(
    store: Store,
    out: str | Path | BinaryIO,
    format: str = "jsonl",
    *,
    at: int | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Exported:
    """Write a generation of `store` to a new file, or to an open one.

    Args:
        out: a path that is free, which appears when all is written; or a binary stream.
        format: "jsonl", the facts as `read_facts` reads them; "safetensors", with all that the database knows of them
            and their vectors (docs/exchange.md describes it to the byte). The same generation gives the same bytes.
        at: the generation; the newest by default.
        on_bad: only for "jsonl": called with what is wrong with each fact that cannot be read, which is then left out.

    Raises:
        StoreError: no such generation or format, `out` is there already, or the disk fails. Nothing is left of it then.
        CorruptError: the database is damaged; where it is an array, the facts that it serves are named. What was
            written to an open stream is no whole file then.
    """
    if format not in FORMATS:
        raise StoreError(f"unknown export format {format!r}; choose one of {', '.join(FORMATS)}")
    if on_bad is not None and format != "jsonl":
        raise StoreError("only the format jsonl can leave out facts that cannot be read")
    generation = store.generation if at is None else at
    store.check_generation(generation)
    number = store.catalog.generation_record(generation).facts
    if on_bad is not None:
        readable = list(store.catalog.readable_facts(generation, on_bad))
        number = len(readable)
        blocks = _jsonl(readable)
    elif format == "jsonl":
        blocks = _jsonl(store.catalog.facts(generation))
    else:
        blocks = _safetensors(store, generation)
    blocks = _kept(store, generation, blocks)
    written = _write_stream(out, blocks) if not isinstance(out, (str, Path)) else _write_file(Path(out), blocks)
    return Exported(generation, number, written)


def _kept(store: Store, generation: int, blocks: Iterable[memoryview]) -> Iterator[memoryview]:
    """The same, if none of the facts was forgotten while they were read."""
    yield from blocks
    if not store.catalog.keeps(generation):
        raise StoreError(f"{store.root} was compacted while generation {generation} was exported: export again")


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


def _jsonl(facts: Iterable[StoredFact]) -> Iterator[memoryview]:
    return _joined(plain_line(fact) for fact in facts)


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
    config = store.config(generation)
    check_catalog(store.catalog)
    error_of = error_for(store.catalog, generation)
    segments = _opened(store, generation, error_of)
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
        d1=config.d1,
        d2=config.d2,
    )
    yield memoryview(header(sizes, metadata(generation, config, _runs(kept))))
    for name, (dtype, _, _) in TENSORS.items():
        blocks = _joined(lines()) if name == "facts" else _column(name, dtype, kept, error_of)
        want = int(np.prod(sizes.shape(name), dtype=np.int64)) * np.dtype(dtype).itemsize
        for block in blocks:
            want -= len(block)
            yield block
        if want:
            raise StoreError(f"{store.root} was compacted while generation {generation} was exported: export again")


def _opened(store: Store, generation: int, error_of: ErrorOf) -> list[Segment]:
    try:
        segments = store.snapshot(generation).segments
        for segment in segments:
            check_numbers(segment, error_of)
        return segments
    except CorruptError:
        config = store.config(generation)
        for record in store.catalog.segments(generation):
            open_segment(store.root, record, config.d1, config.d2, error_of)
        raise


def _line(store: Store, fact: StoredFact) -> bytes:
    try:
        return fact_line(fact)
    except ValueError as error:
        raise CorruptError(f"{store.root}: the fact {fact.id!r} holds a value that JSON has not ({error})") from None


def _check_order(store: Store, kept: Sequence[Kept]) -> None:
    last = -1
    for segment, keep in kept:
        entries = segment.entries[keep]
        if entries[0] <= last:
            raise CorruptError(f"{segment.folder / 'entries.npy'}: its ids do not follow those of the segments before")
        last = int(entries[-1])


def _runs(kept: Sequence[Kept]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(entries, prefixes) of neighbouring segments with the same prefixes."""
    for prefixes, group in groupby(kept, key=lambda one: one[0].record.prefixes):
        yield sum(int(keep.sum()) for _, keep in group), prefixes


def _column(name: str, dtype: str, kept: Sequence[Kept], error_of: ErrorOf) -> Iterator[memoryview]:
    """The rows of one array over all segments."""
    for block in column(name, kept, error_of):
        yield np.ascontiguousarray(block, dtype).data.cast("B")
