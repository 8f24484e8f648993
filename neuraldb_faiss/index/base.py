"""Searcher interface, and the interfaces of the snapshots that searchers and gates read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a searcher may keep things.

    Attributes:
        directory: the database's `search/` folder, for files that can be made anew; None to keep none.
        gpu: a GPU that the installed FAISS can use and that the queries will come from, or None.
    """

    directory: Path | None = None
    gpu: torch.device | None = None


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
