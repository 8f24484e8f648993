"""Index kind `ivf`: keys clustered around centroids, of which each query visits the nearest few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuraldb_faiss.index import gpu
from neuraldb_faiss.index.base import KeySource, Place, Searcher
from neuraldb_faiss.index.clustering import automatic_nlist, automatic_nprobe, train
from neuraldb_faiss.index.clustering_files import Clustering, load_clustering, save_clustering
from neuraldb_faiss.index.faiss_module import load_faiss, selector, small_batches
from neuraldb_faiss.index.vectors import unit_blocks

SAVE_AGAIN = 1.05  # a saved clustering is written anew once it misses 5 % of the keys


class IvfSearcher(Searcher):
    """faiss.IndexIVFFlat by inner product; with nprobe = nlist it answers as `flat` does."""

    kind = "ivf"
    tolerance = 1e-4

    def __init__(self, centroids: np.ndarray, *, nprobe: int | None = None) -> None:
        """centroids: float32 [nlist, d1]."""
        self._faiss = load_faiss()
        self.nlist, self._d1 = centroids.shape
        self.nprobe = automatic_nprobe(self.nlist) if nprobe is None else min(nprobe, self.nlist)
        self.centroids = centroids
        self._quantizer = self._faiss.IndexFlatIP(self._d1)
        self._quantizer.add(centroids)
        self._index = self._faiss.IndexIVFFlat(self._quantizer, self._d1, self.nlist, self._faiss.METRIC_INNER_PRODUCT)
        self._index.is_trained = True
        self._lists: list[np.ndarray] = []

    @property
    def ntotal(self) -> int:
        return int(self._index.ntotal)

    @property
    def lists(self) -> np.ndarray:
        """int32 [ntotal]: the list that holds each key."""
        return np.concatenate(self._lists) if self._lists else np.empty(0, np.int32)

    def add(self, keys: np.ndarray, lists: np.ndarray | None = None) -> None:
        """Append unit rows; `lists` (int32, of the first rows) saves the search for their centroids."""
        known = np.empty(0, np.int32) if lists is None else lists
        rest = keys[len(known) :]
        if len(rest):
            with small_batches(self._d1):
                found = self._quantizer.search(rest, 1)[1][:, 0]
            # -1 (no centroid, as for a row of NaN) would drop the key and shift nothing: put it in list 0.
            known = np.concatenate([known, np.maximum(found, 0).astype(np.int32)])
        numbers = np.arange(self.ntotal, self.ntotal + len(keys), dtype=np.int64)
        wide, rows, swig = known.astype(np.int64), np.ascontiguousarray(keys), self._faiss.swig_ptr
        self._index.add_core(len(keys), swig(rows), swig(numbers), swig(wide))
        self._lists.append(known)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, above: float = -1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        settings = {"nprobe": self.nprobe}
        if allowed is not None:
            chosen, _bits = selector(allowed)
            settings["sel"] = chosen
        with small_batches(self._d1):
            return self._index.search(queries, k, params=self._faiss.SearchParametersIVF(**settings))


def open_ivf(source: KeySource, place: Place, *, nlist: int | None = None, nprobe: int | None = None) -> Searcher:
    """A searcher of all keys of the source, clustered as the files in the folder say, else anew and saved there; on the
    GPU of `place` if one is given.

    Files that are missing, damaged, from another folder or of another size are replaced; a folder that
    cannot be written is left alone.

    Args:
        nlist: number of lists; None: by the number of keys.
        nprobe: lists that each query visits; None: by the number of lists.
    """
    directory = place.directory
    wanted = automatic_nlist(source.n_keys) if nlist is None else min(nlist, max(1, source.n_keys))
    saved = load_clustering(directory, source) if directory else None
    # Automatic sizes follow the database slowly: clustering anew at every key would save nothing.
    slack = 2 if nlist is None else 1
    if saved and not wanted / slack <= len(saved.centroids) <= wanted * slack:
        saved = None
    centroids = saved.centroids if saved else train(source, wanted)
    known = saved.lists if saved else np.empty(0, np.int32)
    save = directory is not None and (not saved or source.n_keys > SAVE_AGAIN * len(known))
    searcher: IvfSearcher | gpu.GpuIvfSearcher
    if place.gpu is None:
        searcher = IvfSearcher(centroids, nprobe=nprobe)
    else:
        gpus = gpu.choose_gpus(place.gpu, 2 * 4 * source.n_keys * source.d1)  # float32, twice while its lists grow
        searcher = gpu.GpuIvfSearcher(centroids, place.gpu, gpus, nprobe=nprobe)
    lists = []
    for block in unit_blocks(source):
        if isinstance(searcher, IvfSearcher):
            searcher.add(block, known[searcher.ntotal : searcher.ntotal + len(block)])
        else:  # it finds the list of every key anew, and does not tell
            if save:
                lists.append(searcher.assign(block))
            searcher.add(block)
    if directory and save:
        found = searcher.lists if isinstance(searcher, IvfSearcher) else np.concatenate([*lists, np.empty(0, np.int32)])
        save_clustering(directory, source, Clustering(centroids, found))
    return searcher


def share_clustering(
    target: KeySource, directory: Path, sources: Sequence[tuple[KeySource, Path]], *, nlist: int | None = None
) -> int | None:
    """Give merged keys the centroids of the largest of their `sources` (with its `search/` folder) whose number of
    lists still suits; each key is only assigned to them. Which source, or None: then opening trains anew.
    """
    wanted = automatic_nlist(target.n_keys) if nlist is None else nlist
    fitting: list[tuple[int, int, np.ndarray]] = []
    for number, (source, folder) in enumerate(sources):
        saved = load_clustering(folder, source)
        slack = 2 if nlist is None else 1
        if saved and wanted / slack <= len(saved.centroids) <= wanted * slack:
            fitting.append((source.n_keys, -number, saved.centroids))
    if not fitting:
        return None
    _, number, centroids = max(fitting, key=lambda one: one[:2])
    searcher = IvfSearcher(centroids)
    for block in unit_blocks(target):
        searcher.add(block)
    saved_now = save_clustering(directory, target, Clustering(centroids, searcher.lists))
    return -number if saved_now else None
