"""What a backend must do, what it reads, and which kinds there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from neuraldb_faiss.errors import SearchError

if TYPE_CHECKING:
    import torch

KINDS = ("auto", "flat", "ivf", "sketch")


class KeySource(Protocol):
    """The part of a store's snapshot that searching reads; positions number the keys from 0."""

    @property
    def epoch(self) -> int: ...
    @property
    def lineage(self) -> object:
        """Equal in snapshots of one database of which the later one only adds keys and entries to the earlier."""

    @property
    def d1(self) -> int: ...
    @property
    def n_keys(self) -> int: ...
    @property
    def key_entries(self) -> np.ndarray: ...
    @property
    def key_tokens(self) -> np.ndarray: ...
    @property
    def live(self) -> np.ndarray: ...
    def key_blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]: ...
    def keys(self, positions: np.ndarray) -> np.ndarray: ...


class EntrySource(KeySource, Protocol):
    """A snapshot of the store: keys to match, and what the entries they name add and serve."""

    @property
    def d2(self) -> int: ...
    def residuals(self, entry_ids: np.ndarray) -> np.ndarray: ...
    def fact_ids(self, entry_id: int) -> tuple[str, ...]: ...


class Searcher(Protocol):
    """Proposes the nearest keys; the matcher decides. Positions are the order of adding.

    Searching may go on in several threads at once; adding excludes everything else (the matcher's lock).
    """

    kind: str
    tolerance: float  # no score is further than this from the cosine of the stored key
    first_k: int = 8  # keys to ask for first: as cheap as the single nearest (143 and 140 ms), and nearly always enough
    masks_freely: bool = False  # whether a search with `allowed` is as fast as one without

    @property
    def ntotal(self) -> int: ...

    def add(self, keys: np.ndarray) -> None:
        """Append float32 rows of unit length, [n, d1]."""

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, above: float = -1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest keys of every query by inner product, best first.

        queries: float32 [n, d1] of unit length. allowed: bool [ntotal], or None for all keys. above: keys that score
        less need not be found, where that spares work.
        Returns float32 scores [n, k] and int64 positions [n, k], -1 where there are fewer than k.
        """

    def follow(self, source: KeySource) -> None:
        """From now on read stored keys, where that is needed, from this snapshot: all that were added are in it."""
        return None


def check_kind(kind: str) -> str:
    """The kind itself; `auto` is `flat`, the exact one. Raises SearchError for an unknown one."""
    if kind not in KINDS:
        raise SearchError(f"unknown index kind {kind!r}: choose one of {', '.join(KINDS)}")
    return "flat" if kind == "auto" else kind


def make_searcher(
    source: KeySource,
    kind: str = "auto",
    *,
    nlist: int | None = None,
    nprobe: int | None = None,
    directory: Path | None = None,
    device: torch.device | None = None,
) -> Searcher:
    """A searcher that holds all keys of the source, live or not.

    `directory` is the database's `search/` folder: `ivf` keeps its clustering there. `device` is the model's: where it
    is a GPU that the installed FAISS can use, the index lies there (a sketch stays on the host). Raises SearchError for
    an unknown kind, a setting the kind does not have, or where FAISS is missing.
    """
    from neuraldb_faiss.index.faiss_module import gpu_count
    from neuraldb_faiss.index.flat import FlatSearcher
    from neuraldb_faiss.index.gpu import GpuFlatSearcher, choose_gpus
    from neuraldb_faiss.index.ivf import open_ivf
    from neuraldb_faiss.index.sketch import SketchSearcher
    from neuraldb_faiss.index.transfers import is_gpu
    from neuraldb_faiss.index.vectors import unit_blocks

    on_gpu = device is not None and is_gpu(device) and gpu_count() > 0
    if check_kind(kind) == "ivf":
        return open_ivf(source, nlist=nlist, nprobe=nprobe, directory=directory, device=device if on_gpu else None)
    if nlist is not None or nprobe is not None:
        raise SearchError("nlist and nprobe belong to the index kind 'ivf': ask for it, or leave them out")
    searcher: Searcher
    if kind == "sketch":
        searcher = SketchSearcher(source)
    elif on_gpu and device is not None:
        gpus = choose_gpus(device, 2 * 2 * source.n_keys * source.d1)  # float16, twice while it grows
        searcher = GpuFlatSearcher(source.d1, device, gpus)
    else:
        searcher = FlatSearcher(source.d1)
    for block in unit_blocks(source):
        searcher.add(block)
    return searcher
