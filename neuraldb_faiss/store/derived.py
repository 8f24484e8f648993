"""Rebuildable index files under `search/`, verified before use.

Arrays `<stem>.<name>.npy` with a manifest `<stem>.json`, each written whole or not at all, the manifest last. It keeps
for each array its sha256 and where it lies (st_dev, st_ino, st_ctime_ns), because a folder that was copied or
downloaded may not be trusted and whoever sends one cannot choose these numbers. Whatever is wrong with the files, they
are made anew, and deleting them loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from neuraldb_faiss.store import atomic
from neuraldb_faiss.strict_json import MAX_TEXT, parse_object

DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, OverflowError, MemoryError)


def save_arrays(directory: Path, stem: str, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> bool:
    """Write the arrays and a manifest with `notes` (JSON).

    False where the folder cannot be written (read-only, disk full, a link): what was made then lives in memory only.
    """
    try:
        if directory.is_symlink():
            return False
        directory.mkdir(exist_ok=True)
        for name, array in arrays.items():
            with atomic.replacing(directory / f"{stem}.{name}.npy") as file:
                np.save(file, array, allow_pickle=False)
        files = {f"{stem}.{name}.npy": describe(directory / f"{stem}.{name}.npy") for name in arrays}
        text = json.dumps({**notes, "files": files}, indent=1).encode()
        atomic.write_file(directory / f"{stem}.json", text)
    except OSError:
        return False
    return True


def load_arrays(
    directory: Path, stem: str, kinds: Mapping[str, str], sound: Callable[[dict[str, Any]], bool]
) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """The manifest and its arrays, memory-mapped, or None where anything about them is doubtful.

    kinds: array name -> dtype; all have one axis. sound: whether a manifest (whatever JSON object) still fits the
    database; it may raise any of `DAMAGE`.
    """
    try:
        manifest = read_manifest(directory, stem)
        if not sound(manifest):
            return None
        files = {name: f"{stem}.{name}.npy" for name in kinds}
        arrays = {name: _map(directory / file, manifest["files"][file], kinds[name]) for name, file in files.items()}
    except DAMAGE:
        return None
    return manifest, arrays


def _map(path: Path, written: dict[str, Any], kind: str) -> np.ndarray:
    """One array with one axis. Raises one of `DAMAGE` where it is not as written, or of another type."""
    with open_plain(path) as file:  # checked and mapped by the open file: another process may replace it meanwhile
        if _describe(file) != written:
            raise ValueError("its bytes changed since it was written")
        file.seek(0)
        npy.read_magic(file)
        shape, _, dtype = npy.read_array_header_1_0(file)
        if dtype != np.dtype(kind) or len(shape) != 1:
            raise ValueError(f"{dtype} {shape}")
        if not shape[0]:
            return np.empty(0, dtype)
        return np.memmap(file, dtype=dtype, mode="r", offset=file.tell(), shape=shape)


def read_manifest(directory: Path, stem: str) -> dict[str, Any]:
    """Raises OSError where it cannot be read, ValueError where it holds no JSON object."""
    with open(directory / f"{stem}.json", "rb") as file:
        return parse_object(file.read(MAX_TEXT))


def damaged_arrays(directory: Path, stem: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """(file name, what is wrong) for files here whose bytes are not those that were written.

    Files of an older state of the database are not damaged, only out of date: opening makes them anew.
    """
    manifest = f"{stem}.json"
    if not (directory / manifest).exists():
        return []
    try:
        files = read_manifest(directory, stem)["files"]
        written = {f"{stem}.{name}.npy": files[f"{stem}.{name}.npy"]["sha256"] for name in names}
    except DAMAGE as error:
        return [(manifest, f"cannot be read ({error!r})")]
    found = []
    for name, digest in written.items():
        try:
            whole = describe(directory / name)["sha256"] == digest
        except OSError as error:
            found.append((name, f"cannot be read ({error.strerror or error})"))
            continue
        if not whole:
            found.append((name, "its bytes changed since it was written (checksum differs)"))
    return found


def forget_arrays(directory: Path, stem: str, names: Sequence[str]) -> None:
    """Remove the files; the next opening makes them anew."""
    for name in (f"{stem}.json", *(f"{stem}.{name}.npy" for name in names)):
        (directory / name).unlink(missing_ok=True)


def open_plain(path: Path) -> BufferedReader:
    """Open for reading. Raises OSError for a link or anything else that is no plain file."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no plain file")
    return file


def describe(path: Path) -> dict[str, Any]:
    """sha256 and whereabouts of a plain file. Raises OSError for a link or anything else."""
    with open_plain(path) as file:
        return _describe(file)


def _describe(file: BufferedReader) -> dict[str, Any]:
    info = os.fstat(file.fileno())
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "dev": info.st_dev, "ino": info.st_ino, "ctime_ns": info.st_ctime_ns}
