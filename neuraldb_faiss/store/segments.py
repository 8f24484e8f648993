"""Segments: immutable folders of arrays that hold the keys and residuals of some entries."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.store import files

Manifest = dict[str, dict[str, object]]  # file name -> {"bytes", "sha256"}
Column = Callable[[str], Iterable[np.ndarray]]  # name of an array -> its rows, in blocks

# name -> (dtype, per "key" or per "entry" row, columns: "d1", "d2" or none)
ARRAYS = {
    "keys": ("<f2", "key", "d1"),
    "key_norms": ("<f4", "key", None),
    "key_rows": ("<i4", "key", None),
    "key_tokens": ("<i4", "key", None),
    "entries": ("<i8", "entry", None),
    "residuals": ("<f2", "entry", "d2"),
    "residual_scales": ("<f4", "entry", None),
}


@dataclass(frozen=True)
class Rows:
    """Some entries with their keys, as stored.

    Attributes:
        keys: float16 [n, d1], unit length.
        key_norms: float32 [n], the length each key had (the linear editors need it).
        key_rows: int32 [n], the row of `entries` that each key belongs to.
        key_tokens: int32 [n], where each key was taken: see `index.key_tokens`.
        entries: int64 [m], ascending entry ids.
        residuals: float16 [m, d2], to be multiplied by `residual_scales`, float32 [m].
    """

    keys: np.ndarray
    key_norms: np.ndarray
    key_rows: np.ndarray
    key_tokens: np.ndarray
    entries: np.ndarray
    residuals: np.ndarray
    residual_scales: np.ndarray

    @classmethod
    def encode(
        cls,
        keys: np.ndarray,
        key_rows: np.ndarray,
        key_tokens: np.ndarray,
        residuals: np.ndarray,
        entries: np.ndarray,
    ) -> Rows:
        """From float32 keys of any length [n, d1] and float32 residuals [m, d2]."""
        norms = np.linalg.norm(keys.astype(np.float64), axis=1)
        unit = keys / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]
        top = np.abs(residuals).max(axis=1, initial=0.0)
        # A power of two scales without rounding; only rows that float16 would overflow or flush need one.
        needs = ((top >= 2.0**15) | (top < 2.0**-6)) & (top > 0)
        scales = np.where(needs, np.exp2(np.floor(np.log2(np.where(top > 0, top, 1.0)))), 1.0)
        return cls(
            keys=unit.astype(np.float16),
            key_norms=norms.astype(np.float32),
            key_rows=key_rows.astype(np.int32),
            key_tokens=key_tokens.astype(np.int32),
            entries=entries.astype(np.int64),
            residuals=(residuals / scales[:, None]).astype(np.float16),
            residual_scales=scales.astype(np.float32),
        )

    def select(self, keep: np.ndarray) -> Rows:
        """The entries where `keep` (bool [m]) is true, with their keys."""
        new_row = np.cumsum(keep) - 1
        of = keep[self.key_rows]
        return Rows(
            keys=self.keys[of],
            key_norms=self.key_norms[of],
            key_rows=new_row[self.key_rows[of]].astype(np.int32),
            key_tokens=self.key_tokens[of],
            entries=self.entries[keep],
            residuals=self.residuals[keep],
            residual_scales=self.residual_scales[keep],
        )


@dataclass(frozen=True)
class SegmentRecord:
    """What the catalog knows of a segment.

    `made` is None while it is staged; `prefixes` are the texts its prefixed keys were taken behind.
    """

    segment: int
    made: int | None
    entries: int
    keys: int
    prefixes: tuple[str, ...]
    files: Manifest

    @property
    def name(self) -> str:
        return f"{self.segment:08d}"


def is_segment_name(name: str) -> bool:
    """Whether a folder in `segments/` is called as ours are, whole or not (".tmp")."""
    return re.fullmatch(r"[0-9]{8,}(\.tmp)?", name) is not None


def columns_of(chunks: Callable[[], Iterable[Rows]]) -> Column:
    """Each array of `chunks()`, which is asked once for each."""
    return lambda name: _column(name, chunks())


def write_columns(folder: Path, n_entries: int, n_keys: int, d1: int, d2: int, column: Column) -> Manifest:
    """Write a segment into `folder` (new), array by array: `column(name)` yields the rows of each, in blocks.

    The folder is written beside its final name and renamed, so a folder with that name is whole.

    Returns:
        file name -> {"bytes", "sha256"}.
    """
    counts = {"key": n_keys, "entry": n_entries}
    widths = {"d1": (d1,), "d2": (d2,), None: ()}

    def fill(temporary: Path) -> Manifest:
        return {
            f"{name}.npy": files.write_array(
                temporary / f"{name}.npy", dtype, (counts[per], *widths[width]), column(name)
            )
            for name, (dtype, per, width) in ARRAYS.items()
        }

    return write_segment_files(folder, fill)


def write_segment_files(folder: Path, fill: Callable[[Path], Manifest]) -> Manifest:
    """Let `fill` write a segment's files into a temporary folder, and rename that to `folder`."""
    temporary = begin_folder(folder)
    manifest = fill(temporary)
    seal_folder(temporary, folder)
    return manifest


def begin_folder(folder: Path) -> Path:
    """An empty folder in which a segment's files are written before it is sealed as `folder`."""
    temporary = folder.with_name(folder.name + ".tmp")
    for stale in (temporary, folder):  # left by a writer that was killed before it named them in the catalog
        if stale.exists():
            files.remove_tree(stale)
    files.make_folder(temporary, durable=False)
    return temporary


def seal_folder(temporary: Path, folder: Path) -> None:
    files.sync_folder(temporary)
    files.rename(temporary, folder)


def _column(name: str, chunks: Iterable[Rows]) -> Iterable[np.ndarray]:
    offset = 0
    for rows in chunks:
        array = getattr(rows, name)
        yield array + np.int32(offset) if name == "key_rows" else array
        offset += len(rows.entries)


class Segment:
    """A segment on disk, its large arrays memory-mapped. Its files may go while it is open.

    Attributes:
        headers: array name -> the bytes that stand before it in its file.

    Raises:
        CorruptError: it is not what the catalog says.
    """

    def __init__(self, root: Path, record: SegmentRecord, d1: int, d2: int) -> None:
        self.record = record
        self.headers: dict[str, bytes] = {}
        self.folder = root / "segments" / record.name
        counts = {"key": record.keys, "entry": record.entries}
        widths = {"d1": (d1,), "d2": (d2,), None: ()}
        files.within(root, self.folder)
        for name, (dtype, per, width) in ARRAYS.items():
            path = files.within(self.folder, self.folder / f"{name}.npy")
            self.headers[name], array = files.open_whole(path, dtype, (counts[per], *widths[width]))
            setattr(self, f"_{name}", array)
        # Without it the kernel reads ahead around every row: 114 ms instead of 7 ms for 32 cold rows.
        self._advise("MADV_RANDOM")

    def read_in_order(self) -> None:
        """Tell the kernel that the residuals will now be read from end to end, not row by row."""
        self._advise("MADV_SEQUENTIAL")

    def _advise(self, advice: str) -> None:
        residuals = getattr(self._residuals, "_mmap", None)
        if residuals is not None and hasattr(mmap, advice):
            residuals.madvise(getattr(mmap, advice))

    _keys: np.ndarray
    _key_norms: np.ndarray
    _key_rows: np.ndarray
    _key_tokens: np.ndarray
    _entries: np.ndarray
    _residuals: np.ndarray
    _residual_scales: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """float16 [n, d1]; not a copy."""
        return self._keys

    @property
    def key_norms(self) -> np.ndarray:
        return self._key_norms

    @property
    def key_tokens(self) -> np.ndarray:
        return self._key_tokens

    @cached_property
    def entries(self) -> np.ndarray:
        """int64 [m], ascending."""
        entries = np.array(self._entries)
        if len(entries) and (entries[0] < 0 or (np.diff(entries) <= 0).any()):
            raise CorruptError(f"{self.folder / 'entries.npy'}: entry ids are not ascending")
        return entries

    @cached_property
    def key_rows(self) -> np.ndarray:
        rows = np.array(self._key_rows)
        if len(rows) and (rows[0] < 0 or rows[-1] >= self.record.entries or (np.diff(rows) < 0).any()):
            raise CorruptError(f"{self.folder / 'key_rows.npy'}: names rows that do not exist")
        return rows

    @property
    def key_entries(self) -> np.ndarray:
        """int64 [n], the entry of every key."""
        return self.entries[self.key_rows]

    def stored(self, name: str) -> np.ndarray:
        """One of `ARRAYS` as it is on disk, unchecked; not a copy."""
        array: np.ndarray = getattr(self, f"_{name}")
        return array

    def residuals(self, rows: np.ndarray) -> np.ndarray:
        """float32 [len(rows), d2], gathered."""
        return self._residuals[rows].astype(np.float32) * self._residual_scales[rows][:, None]

    def rows(self, start: int = 0, stop: int | None = None) -> Rows:
        """The entries start..stop as stored (not copied), with their keys."""
        stop = self.record.entries if stop is None else stop
        # Keys are written in the order of their entries, so a range of entries is a range of keys.
        keys = slice(*np.searchsorted(self.key_rows, (start, stop)))
        return Rows(
            keys=self._keys[keys],
            key_norms=self._key_norms[keys],
            key_rows=self.key_rows[keys] - np.int32(start),
            key_tokens=self._key_tokens[keys],
            entries=self.entries[start:stop],
            residuals=self._residuals[start:stop],
            residual_scales=self._residual_scales[start:stop],
        )

    def chunks(self, size: int = 4096) -> Iterable[Rows]:
        """All its rows in pieces of `size` entries."""
        for start in range(0, self.record.entries, size):
            yield self.rows(start, min(start + size, self.record.entries))
