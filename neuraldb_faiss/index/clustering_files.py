"""Files of an IVF index under `search/`: its centroids, and the list of each key.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuraldb_faiss.index.base import KeySource
from neuraldb_faiss.index.faiss_module import load_faiss
from neuraldb_faiss.store.derived import (  # fmt: skip
    DAMAGE,
    damaged_arrays,
    describe,
    forget_arrays,
    read_manifest,
    save_arrays,
)

STEM = "ivf"
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
    """Write the files. False where the folder cannot be written (read-only, disk full): the index then lives in memory
    only."""
    n_keys = len(clustering.lists)
    notes = {**_header(source, n_keys), "nlist": len(clustering.centroids), "n_keys": n_keys}
    return save_arrays(directory, STEM, {"centroids": clustering.centroids, "lists": clustering.lists}, notes)


def load_clustering(directory: Path, source: KeySource) -> Clustering | None:
    """The saved clustering of the first keys of this source, or None where anything about it is doubtful."""
    try:
        manifest = read_manifest(directory, STEM)
        n_keys, nlist = manifest["n_keys"], manifest["nlist"]
        if not (type(n_keys) is int and 0 < n_keys <= source.n_keys and type(nlist) is int):
            return None
        if any(manifest.get(name) != value for name, value in _header(source, n_keys).items()):
            return None
        if any(manifest["files"][name] != describe(directory / name) for name in ARRAYS):
            return None
        centroids = np.load(directory / CENTROIDS, allow_pickle=False)
        lists = np.load(directory / LISTS, allow_pickle=False)
    except DAMAGE:
        return None
    sound = (
        centroids.dtype == np.float32 and centroids.shape == (nlist, source.d1) and nlist > 0
        and lists.dtype == np.int32 and lists.shape == (n_keys,)
        and bool(np.isfinite(centroids).all()) and int(lists.min()) >= 0 and int(lists.max()) < nlist
    )  # fmt: skip
    return Clustering(np.ascontiguousarray(centroids), lists) if sound else None


def damaged_files(directory: Path) -> list[tuple[str, str]]:
    """As `derived.damaged_arrays`, of the files of this index."""
    return damaged_arrays(directory, STEM, ("centroids", "lists"))


def forget_clustering(directory: Path) -> None:
    """Remove the files; the next opening makes them anew."""
    forget_arrays(directory, STEM, ("centroids", "lists"))


def _header(source: KeySource, n_keys: int) -> dict[str, Any]:
    """What must be the same now as when the files were written."""
    sample = np.unique(np.linspace(0, max(0, n_keys - 1), min(SAMPLE, n_keys)).astype(np.int64))
    digest = hashlib.sha256(np.ascontiguousarray(source.keys(sample)).tobytes()).hexdigest()
    return {"kind": "ivf", "faiss": load_faiss().__version__, "epoch": source.epoch, "keys": digest}
