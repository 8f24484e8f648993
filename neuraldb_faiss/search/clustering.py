"""The files of an IVF index under `search/`: which centroids there are, and which one holds each key.

The keys themselves stay in the segments and are added from there, so nothing is stored twice, and no file
goes through FAISS's own reader, which takes flipped or hostile bytes without complaint. The files are
derived: whatever is wrong with them, they are made anew, and deleting them loses nothing.

    ivf.centroids.npy   float32 [nlist, d1]
    ivf.lists.npy       int32 [n_keys], the list of each key, by position
    ivf.json            kind, faiss (version), nlist, n_keys, epoch, keys (sha256 over a sample of the stored
                        keys), files: for each array its sha256 and where it lies (st_dev, st_ino,
                        st_ctime_ns), because a folder that was copied or downloaded may not be trusted and
                        whoever sends one cannot choose these numbers
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neuraldb_faiss.search.faiss_module import load_faiss
from neuraldb_faiss.search.searcher import KeySource

MANIFEST = "ivf.json"
CENTROIDS = "ivf.centroids.npy"
LISTS = "ivf.lists.npy"
ARRAYS = (CENTROIDS, LISTS)
SAMPLE = 64


@dataclass(frozen=True, slots=True)
class Clustering:
    centroids: np.ndarray  # float32 [nlist, d1]
    lists: np.ndarray  # int32 [n]


def save_clustering(directory: Path, source: KeySource, clustering: Clustering) -> bool:
    """Write the files, each under a temporary name, fsynced and renamed, the manifest last.

    False where the folder cannot be written (read-only, disk full): the index then lives in memory only.
    """
    try:
        directory.mkdir(exist_ok=True)
        arrays = {CENTROIDS: clustering.centroids, LISTS: clustering.lists}
        for name, array in arrays.items():
            _write(directory / name, partial(np.save, arr=array, allow_pickle=False))
        manifest = {
            **_header(source, len(clustering.lists)),
            "nlist": len(clustering.centroids),
            "n_keys": len(clustering.lists),
            "files": {name: _describe(directory / name) for name in arrays},
        }
        text = json.dumps(manifest, indent=1).encode()
        _write(directory / MANIFEST, lambda file: file.write(text))
    except OSError:
        return False
    return True


def load_clustering(directory: Path, source: KeySource) -> Clustering | None:
    """The saved clustering of the first keys of this source, or None where anything about it is doubtful."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        n_keys, nlist = manifest["n_keys"], manifest["nlist"]
        if not (type(n_keys) is int and 0 < n_keys <= source.n_keys and type(nlist) is int):
            return None
        if any(manifest.get(name) != value for name, value in _header(source, n_keys).items()):
            return None
        if any(manifest["files"][name] != _describe(directory / name) for name in ARRAYS):
            return None
        centroids = np.load(directory / CENTROIDS, allow_pickle=False)
        lists = np.load(directory / LISTS, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, EOFError, RecursionError):
        return None
    sound = (
        centroids.dtype == np.float32 and centroids.shape == (nlist, source.d1) and nlist > 0
        and lists.dtype == np.int32 and lists.shape == (n_keys,)
        and bool(np.isfinite(centroids).all()) and 0 <= int(lists.min()) and int(lists.max()) < nlist
    )  # fmt: skip
    return Clustering(np.ascontiguousarray(centroids), lists) if sound else None


def damaged_files(directory: Path) -> list[tuple[str, str]]:
    """(file name, what is wrong) for files here whose bytes are not those that were written.

    Files of an older state of the database are not damaged, only out of date: opening the index makes them anew.
    """
    if not (directory / MANIFEST).exists():
        return []
    try:
        written = {name: json.loads((directory / MANIFEST).read_bytes())["files"][name]["sha256"] for name in ARRAYS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [(MANIFEST, f"cannot be read ({error!r})")]
    found = []
    for name, digest in written.items():
        try:
            whole = _describe(directory / name)["sha256"] == digest
        except OSError as error:
            found.append((name, f"cannot be read ({error.strerror or error})"))
            continue
        if not whole:
            found.append((name, "its bytes changed since it was written (checksum differs)"))
    return found


def forget_clustering(directory: Path) -> None:
    """Remove the files; the next opening makes them anew."""
    for name in (MANIFEST, *ARRAYS):
        (directory / name).unlink(missing_ok=True)


def _header(source: KeySource, n_keys: int) -> dict[str, Any]:
    """What must be the same now as when the files were written."""
    sample = np.unique(np.linspace(0, max(0, n_keys - 1), min(SAMPLE, n_keys)).astype(np.int64))
    digest = hashlib.sha256(np.ascontiguousarray(source.keys(sample)).tobytes()).hexdigest()
    return {"kind": "ivf", "faiss": load_faiss().__version__, "epoch": source.epoch, "keys": digest}


def _describe(path: Path) -> dict[str, Any]:
    """sha256 and whereabouts of a plain file. Raises OSError for a link or anything else."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise OSError(f"{path} is no plain file")
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "dev": info.st_dev, "ino": info.st_ino, "ctime_ns": info.st_ctime_ns}


def _write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Whole or not at all: temporary name, fsync, rename, fsync of the folder."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
