"""Saved name index under `search/`, so that opening need not hash every name again.

    subjects.hashes.npy    uint64 [n], ascending
    subjects.entries.npy   int64 [n], the entry of each
    subjects.json          version, unicode, epoch, generation (the last whose names are in), origin (what tells
                           that generation from every other), longest, files (see `derived`)

A generation's history never changes, so equal origins mean equal names. What lies here can at worst hide a
name, never fire one: every hit is compared with the catalog's own names.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from neuraldb_faiss.guard.name_index import HASH_VERSION, Speller, Subjects
from neuraldb_faiss.store.derived import damaged_arrays, forget_arrays, load_arrays, save_arrays

SAVE_AGAIN = 2_000  # names that the files lack: hashing so many costs what writing the files does
STEM = "subjects"
KINDS = {"hashes": "<u8", "entries": "<i8"}


class Origin(Protocol):
    """What the index is of: a snapshot. search_folder: None where nothing is to be kept."""

    @property
    def epoch(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def search_folder(self) -> Path | None: ...
    def stamp_of(self, generation: int) -> str | None: ...
    def names(self, entry_id: int) -> tuple[str, ...]: ...


class Names(Origin, Protocol):
    """A snapshot that knows what its entries' subjects are called, and floors that were measured for names.

    search_folder: where the name index is kept; None to keep nothing.
    """

    @property
    def floors(self) -> Mapping[str, float]: ...
    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]: ...


def subjects_of(
    source: Names, spell: Speller | None = None, before: tuple[Subjects, int] | None = None,
    names_of: Callable[[int], Iterable[str]] | None = None,
) -> tuple[Subjects, int]:  # fmt: skip
    """The index of all names up to the source's generation, and the last generation whose names it has.

    The names are kept hashed in files in the source's `search_folder`, so that only the first opening hashes them all.

    Args:
        spell: as for `Subjects`. before: what this gave for an earlier source of the same lineage; it lends its names.
        names_of: an entry's names, where the source's own are not to be asked.
    """
    kept = spell is None  # the files hold names as the catalog has them
    known = before or (load_subjects(source) if kept else None)
    subjects, upto = known or (Subjects.of((), source.names, spell=spell), -1)
    pairs = [(entry, name) for _, entry, name in source.subject_names(upto)]
    subjects = subjects.extended(pairs, names_of or source.names, source.floors)
    if kept and before is None and len(pairs) > SAVE_AGAIN:
        save_subjects(source, subjects)
    return subjects, max(upto, source.generation)


def save_subjects(source: Origin, subjects: Subjects) -> bool:
    """Keep the index of all names up to the source's generation. False where nothing was written."""
    if source.search_folder is None:
        return False
    notes = {
        **_header(source), "generation": source.generation, "origin": source.stamp_of(source.generation),
        "longest": subjects.longest,
    }  # fmt: skip
    return save_arrays(source.search_folder, STEM, {"hashes": subjects.hashes, "entries": subjects.entries}, notes)


def load_subjects(source: Origin) -> tuple[Subjects, int] | None:
    """The kept index and the generation up to which it has all names, or None where anything about it is doubtful.

    It may know names of later generations than the source: their entries have no keys there.
    """
    if source.search_folder is None:
        return None

    def sound(manifest: dict[str, Any]) -> bool:
        generation, longest, origin = manifest["generation"], manifest["longest"], manifest["origin"]
        if type(generation) is not int or type(longest) is not int or not 0 <= longest < 1 << 31:
            return False
        same = all(manifest[name] == value for name, value in _header(source).items())
        return same and isinstance(origin, str) and origin == source.stamp_of(generation)

    found = load_arrays(source.search_folder, STEM, KINDS, sound)
    if found is None:
        return None
    manifest, arrays = found
    if len(arrays["hashes"]) != len(arrays["entries"]):
        return None
    return Subjects(arrays["hashes"], arrays["entries"], manifest["longest"], source.names), manifest["generation"]


def damaged_subjects(directory: Path) -> list[tuple[str, str]]:
    """As `derived.damaged_arrays`, of these files."""
    return damaged_arrays(directory, STEM, tuple(KINDS))


def forget_subjects(directory: Path) -> None:
    """Remove the files; the next opening makes them anew."""
    forget_arrays(directory, STEM, tuple(KINDS))


def _header(source: Origin) -> dict[str, Any]:
    """What must be the same now as when the files were written."""
    return {"version": HASH_VERSION, "unicode": unicodedata.unidata_version, "epoch": source.epoch}
