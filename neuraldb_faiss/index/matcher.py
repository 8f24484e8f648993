"""Matcher: the stored key that answers each query; a searcher proposes, the exact cosine decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from neuraldb_faiss.config import check_gamma
from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.index.base import EntrySource, Searcher
from neuraldb_faiss.index.candidates import propose
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.factory import make_searcher
from neuraldb_faiss.index.gpu import GpuSearcher
from neuraldb_faiss.index.key_tokens import is_bare
from neuraldb_faiss.index.locks import ReadWriteLock
from neuraldb_faiss.index.vectors import exact_cosines, unit_blocks, unit_rows

GROWTH = 16


@dataclass(frozen=True, slots=True)
class Matches:
    """One row a query, on the CPU.

    entry_ids: int64 [n], -1 where there is none. scores: float32 [n], the cosine, 0 where there is none.
    fired: bool [n], decided on the float64 cosine. source: the snapshot that answered.
    """

    entry_ids: torch.Tensor
    scores: torch.Tensor
    fired: torch.Tensor
    source: EntrySource = field(repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.entry_ids)


@dataclass(frozen=True, slots=True)
class Best:
    """The best candidate of every query so far.

    positions: int64 [n], of keys, -1 where there is none. scores: float64 [n], their cosines, 0 where there is none.
    """

    positions: np.ndarray
    scores: np.ndarray

    @classmethod
    def none(cls, n: int) -> Best:
        """Of `n` queries that have no candidate yet."""
        return cls(np.full(n, -1, np.int64), np.zeros(n, np.float64))

    def entries(self, source: EntrySource) -> np.ndarray:
        """int64 [n]: the entries of these keys, -1 where there is none."""
        found = np.full(len(self.positions), -1, np.int64)
        some = self.positions >= 0
        found[some] = source.key_entries[self.positions[some]]
        return found


@dataclass(frozen=True, slots=True)
class _Queries:
    """Queries to be searched for.

    rows: [n, d1], as given. unit: float32 [n, d1], at unit length. some: int64, which of them. gate: a cosine; queries
    with nothing above it may stay approximate. above: a cosine; what is not above it need not be the nearest.
    """

    rows: np.ndarray
    unit: np.ndarray
    some: np.ndarray
    gate: float
    above: float


@dataclass(frozen=True, slots=True)
class _View:
    """What one generation allows, keys of bare names left out. Masks are None where they would be all True."""

    source: EntrySource
    live: np.ndarray | None
    later: np.ndarray | None  # live keys that were not taken at position 0
    heads: dict[int, np.ndarray]  # token id -> ascending positions of the live keys taken at position 0 on it
    searchable: bool  # False: no live key left outside `heads`

    @classmethod
    def of(cls, source: EntrySource) -> _View:
        tokens = np.asarray(source.key_tokens)
        live = np.asarray(source.live, bool) & ~is_bare(tokens)
        heads: dict[int, list[int]] = {}
        for position in np.flatnonzero(live & (tokens >= 0)):
            heads.setdefault(int(tokens[position]), []).append(int(position))
        later = live & (tokens < 0)
        return cls(
            source,
            None if live.all() else live,
            None if later.all() else later,
            {token: np.array(positions, np.int64) for token, positions in heads.items()},
            bool(later.any()),
        )


class Matcher:
    """Finds the nearest live key of every query, and fires where its cosine is above gamma.

    Keys that are not live (deleted, updated, waiting) stay in the index; they are passed over while matching,
    so a removal needs no rebuild. Any number of threads may match while one refreshes.
    """

    def __init__(
        self, source: EntrySource, kind: str = "auto", *, gamma: float, directory: Path | None = None,
        device: torch.device | None = None, **options: int,
    ) -> None:  # fmt: skip
        """Open the index.

        Args:
            source: a snapshot of the store.
            kind: "auto" (= flat), or a kind of `index.registry`.
            gamma: the gate, 0 <= gamma < 1.
            directory: the database's `search/` folder, or None to keep nothing.
            device: where the queries will come from; a GPU that FAISS can use gets the index.
            options: of the kind, as its row names them.

        Raises:
            SearchError: an unknown kind or option, or FAISS is missing.
        """
        self.gamma = check_gamma(gamma)
        self._make = partial(make_searcher, kind=kind, options=options, directory=directory, device=device)
        self._lock = ReadWriteLock()
        self._searcher: Searcher = self._make(source)
        self._view = _View.of(source)

    @property
    def kind(self) -> str:
        return self._searcher.kind

    @property
    def source(self) -> EntrySource:
        """The snapshot that answers now."""
        return self._view.source

    def refresh(self, source: EntrySource) -> None:
        """Answer from another generation: only its new keys are added while the lineage is the same.

        A rollback to fewer keys keeps the index, whose later keys do not answer.
        """
        view = _View.of(source)
        old = self._view.source
        if source.lineage != old.lineage or source.d1 != old.d1:
            searcher = self._make(source)  # beside the old one, which goes on answering
            with self._lock.write():
                self._searcher, self._view = searcher, view
            return
        with self._lock.write():
            for block in unit_blocks(source, self._searcher.ntotal):
                self._searcher.add(block)
            self._searcher.follow(source)
            self._view = view

    def match(
        self, queries: torch.Tensor | np.ndarray, gamma: float | None = None,
        first_tokens: np.ndarray | None = None, *, exact: bool = False,
    ) -> Matches:  # fmt: skip
        """The nearest live key of each query, equal cosines going to the lowest key position.

        queries: [n, d1], any floating dtype, device and norm; a row that is zero or holds a NaN or an
        infinity matches nothing. gamma: instead of the matcher's own. first_tokens: int64 [n], or None for
        the plain cosine gate; a value t >= 0 says that the query is the first token of its text and has id t
        (only keys taken at position 0 on that same token answer: all first tokens have nearly the same key),
        -1 that it stands later (only the other keys answer). exact: also find the nearest entry, with its
        exact cosine, for rows that do not fire (with a sketch the one that looks nearest); else those name the
        nearest one at hand, or none.

        Raises SearchError for a wrong shape or gamma.
        """
        gamma = self.gamma if gamma is None else check_gamma(gamma)
        rows = as_rows(queries)
        with self._lock.read():
            view, searcher = self._view, self._searcher
            if rows.ndim != 2 or rows.shape[1] != view.source.d1:
                raise SearchError(f"queries have shape {tuple(rows.shape)}: expected [n, {view.source.d1}]")
            unit, usable = unit_rows(rows)
            best = Best.none(len(rows))
            body = usable
            allowed = view.live
            if first_tokens is not None:
                first_tokens = np.asarray(first_tokens)
                if first_tokens.shape != (len(rows),):
                    raise SearchError(f"first_tokens has shape {first_tokens.shape}: expected [{len(rows)}]")
                body, allowed = usable & (first_tokens < 0), view.later
                for row in np.flatnonzero(usable & (first_tokens >= 0)):
                    keys = view.heads.get(int(first_tokens[row]))
                    if keys is not None:
                        decide(view.source, rows, np.full(len(keys), row), keys, best)
            if (view.searchable or first_tokens is None) and searcher.ntotal:
                above = gamma - searcher.tolerance
                asked = _Queries(rows, unit, np.flatnonzero(body), -2.0 if exact else above, above)
                _search(view.source, searcher, asked, allowed, best)
            entries = best.entries(view.source)
        return Matches(
            torch.from_numpy(entries),
            torch.from_numpy(best.scores.astype(np.float32)),
            torch.from_numpy((best.positions >= 0) & (best.scores > gamma)),
            view.source,
        )

    def candidates(
        self, queries: torch.Tensor, first_tokens: Callable[[], tuple[np.ndarray, np.ndarray]]
    ) -> Candidates:
        """The keys that may answer queries on a GPU, for `device_matcher.decide`; the host waits once, as a rule.

        first_tokens: called once the search is on its way: bool [n], the rows to answer, and int64 [n] as for `match`.
        The index must be on a GPU (`on_gpu`).
        """
        with self._lock.read():
            view, searcher = self._view, self._searcher
            assert isinstance(searcher, GpuSearcher)
            return propose(view.source, searcher, queries, first_tokens, view.later, view.heads, self.gamma)

    @property
    def on_gpu(self) -> bool:
        return isinstance(self._searcher, GpuSearcher)


def _search(source: EntrySource, searcher: Searcher, queries: _Queries, allowed: np.ndarray | None, best: Best) -> None:
    """Fill `best` for the queries `some`.

    First all keys, without a selector where searching is slow with one; then again, with one and with more keys,
    only the rows whose answer could still lie beyond what came back.
    """
    n, gate, pending = source.n_keys, queries.gate, queries.some
    if searcher.ntotal > n:  # rolled back: the index still holds later keys
        allowed = np.pad(np.ones(n, bool) if allowed is None else allowed, (0, searcher.ntotal - n))
    mask, k = allowed if searcher.masks_freely else None, searcher.first_k
    while len(pending):
        k = min(k, searcher.ntotal)
        near, at = searcher.search(queries.unit[pending], k, mask, queries.above)
        fits = at >= 0
        if allowed is not None:
            fits &= allowed[at]
        near_fit = np.where(fits, near, -np.inf)
        top = near_fit.max(axis=1)
        close = near_fit >= np.maximum(top - 2 * searcher.tolerance, gate)[:, None]
        # Below the gate nothing can fire: report what is at hand, as FAISS scored it.
        first = near_fit.argmax(axis=1)
        rough = np.flatnonzero(~close.any(axis=1) & np.isfinite(top))
        best.positions[pending[rough]] = at[rough, first[rough]]
        best.scores[pending[rough]] = near_fit[rough, first[rough]]
        row, column = np.nonzero(close)
        decide(source, queries.rows, pending[row], at[row, column], best)
        # What did not come back scores no more than the last that did, give or take the tolerance.
        last = near[:, -1]
        answered = np.where(close.any(axis=1), best.scores[pending] - 2 * searcher.tolerance, gate)
        more = (at[:, -1] >= 0) & (last >= np.maximum(answered, gate))
        if k == searcher.ntotal:
            break
        pending, mask, k = pending[more], allowed, k * GROWTH


def decide(
    source: EntrySource, rows: np.ndarray, which: np.ndarray, positions: np.ndarray, best: Best,
    floors: np.ndarray | None = None, behind: np.ndarray | None = None,
) -> None:  # fmt: skip
    """The exact winner among candidates: queries `which` [m] of `rows` against the keys at `positions` [m].

    Fills the queries' places in `best`. A candidate whose cosine is below its floor [m] is none. behind [m]: how much
    nearer than another each must be to win.
    """
    if not len(which):
        return
    cosines = exact_cosines(source, rows, which, positions)
    if floors is not None:
        high = cosines >= floors
        which, positions, cosines = which[high], positions[high], cosines[high]
        behind = None if behind is None else behind[high]
        if not len(which):
            return
    order = np.lexsort((positions, -cosines if behind is None else behind - cosines, which))
    winners = order[np.r_[True, np.diff(which[order]) != 0]]
    best.positions[which[winners]] = positions[winners]
    best.scores[which[winners]] = cosines[winners]


def as_rows(queries: torch.Tensor | np.ndarray) -> np.ndarray:
    """Floating rows that NumPy can hold: float64 stays, everything else becomes float32."""
    if isinstance(queries, torch.Tensor):
        wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
        return queries.detach().to("cpu", wide).numpy()
    return queries if queries.dtype == np.float64 else np.asarray(queries, np.float32)
