"""Read-only view of one generation, with its large arrays memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.errors import CompactedError
from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.store.catalog import FIRING, Catalog
from neuraldb_faiss.store.fact_filter import VISIBLE, RowFilter
from neuraldb_faiss.store.records import StoredFact
from neuraldb_faiss.store.segments import Segment, SegmentRecord
from neuraldb_faiss.strict_json import BadJSON, parse

T = TypeVar("T")


class Snapshot:
    """One generation, unchanging while it is open, also while a writer works or compacts.

    Its arrays stay whatever happens. Facts are read from the catalog when they are asked for: where a compaction has
    forgotten some of them, because they ended after this generation, the methods that name facts raise CompactedError.

    Key positions number the rows of all visible segments in order; within one `epoch` (between two
    compactions) a later generation only appends to them.
    """

    def __init__(
        self, root: Path, catalog: Catalog, generation: int, config: DatabaseConfig,
        segments: dict[int, Segment] | None = None, lineage: object = None,
    ) -> None:  # fmt: skip
        """config: the settings of `generation`. segments: open ones, lent by another snapshot of the same `lineage`."""
        self.generation = generation
        self.place = catalog.place
        self.stamp = catalog.stamp_of(generation)
        self.config = config
        self.epoch = config.epoch
        self.d1 = config.d1
        self.d2 = config.d2
        self.search_folder: Path | None = root / "search"  # what is derived from this snapshot may be kept there
        # Equal where keys and entries are only ever added from one snapshot to another.
        self.lineage: object = lineage or (catalog.place, self.epoch)
        self._catalog = catalog
        known = segments or {}
        self.segments = [
            known.get(record.segment) or self._open(root, record) for record in catalog.segments(generation)
        ]
        self._states = catalog.states(generation)
        self._fact_ids: dict[int, tuple[str, ...]] = {}
        self.n_keys = sum(segment.record.keys for segment in self.segments)
        self.n_entries = sum(segment.record.entries for segment in self.segments)
        self._first_key = np.cumsum([0] + [segment.record.keys for segment in self.segments])

    def _open(self, root: Path, record: SegmentRecord) -> Segment:
        return Segment(root, record, self.d1, self.d2)

    def _concatenate(self, name: str, dtype: type) -> np.ndarray:
        parts = [getattr(segment, name) for segment in self.segments]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    @cached_property
    def key_entries(self) -> np.ndarray:
        """int64 [n_keys]: the entry of every key."""
        return self._concatenate("key_entries", np.int64)

    @cached_property
    def key_tokens(self) -> np.ndarray:
        """int32 [n_keys]: the token id of a key taken at position 0 of its text, else -1."""
        return self._concatenate("key_tokens", np.int32)

    @cached_property
    def key_norms(self) -> np.ndarray:
        """float32 [n_keys]: the length each key had before it was normalised."""
        return self._concatenate("key_norms", np.float32)

    @cached_property
    def live(self) -> np.ndarray:
        """bool [n_keys]: False where the key's entry does not fire in this generation."""
        silent = [entry for entry, state in self._states.items() if state not in FIRING]
        if not silent:
            return np.ones(self.n_keys, bool)
        return ~np.isin(self.key_entries, np.array(silent, np.int64))

    @cached_property
    def _entries(self) -> tuple[np.ndarray, np.ndarray]:
        """All entry ids, ascending, and the row of each over all segments."""
        entries = self._concatenate("entries", np.int64)
        order = np.argsort(entries, kind="stable")
        return entries[order], order

    def key_blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """(position of its first row, float16 [n, d1]) over all keys from position `start` on."""
        for first, segment in zip(self._first_key, self.segments, strict=False):
            skip = max(0, start - int(first))
            if skip < segment.record.keys:
                yield int(first) + skip, segment.keys[skip:]

    def keys(self, positions: np.ndarray) -> np.ndarray:
        """float16 [n, d1], unit length up to rounding: the stored keys at these positions."""
        out = np.empty((len(positions), self.d1), np.float16)
        which = np.searchsorted(self._first_key, positions, side="right") - 1
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            out[at] = self.segments[number].keys[positions[at] - self._first_key[number]]
        return out

    def residuals(self, entry_ids: np.ndarray) -> np.ndarray:
        """float32 [n, d2], gathered. Raises KeyError for an unknown entry."""
        ids, order = self._entries
        at = np.searchsorted(ids, entry_ids)
        if len(entry_ids) and (len(ids) == 0 or (ids[np.minimum(at, len(ids) - 1)] != entry_ids).any()):
            raise KeyError(f"no such entry in generation {self.generation}: {list(entry_ids)}")
        rows = order[at] if len(entry_ids) else np.empty(0, np.int64)
        first = np.cumsum([0] + [segment.record.entries for segment in self.segments])
        which = np.searchsorted(first, rows, side="right") - 1
        out = np.empty((len(rows), self.d2), np.float32)
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            out[mine] = self.segments[number].residuals(rows[mine] - first[number])
        return out

    def _whole(self, read: T) -> T:
        """What was just read from the catalog, if a compaction had not forgotten parts of it before."""
        if not self._catalog.keeps(self.generation):
            raise CompactedError(
                f"{self._catalog.root}: generation {self.generation}, which was open, has been compacted away since"
            )
        return read

    def facts(self, **where: Unpack[RowFilter]) -> Iterator[StoredFact]:
        """Live facts in the order they came, narrowed by what is given; see `Catalog.facts`. Those that were given are
        all of them only where no error ends them."""
        yield from self._catalog.facts(self.generation, **where)
        self._whole(None)

    def fact_ids(self, entry_id: int) -> tuple[str, ...]:
        """Ids of the facts the entry serves, in the order they came."""
        known = self._fact_ids.get(entry_id)
        if known is None:
            rows = self._catalog.all(
                f"SELECT id FROM facts WHERE entry = :e AND {VISIBLE} ORDER BY row",
                {"e": int(entry_id), "g": self.generation},
            )
            known = self._whole(tuple(dict.fromkeys(row["id"] for row in rows)))
            if len(self._fact_ids) >= _KEPT:
                self._fact_ids.clear()
            self._fact_ids[entry_id] = known
        return known

    @cached_property
    def floors(self) -> dict[str, float]:
        """Name -> the cosine that `neuraldb calibrate` found it needs."""
        return {name: float(floor) for name, floor in self.config.floors.items()}

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        """(row, entry, name) for every name of every fact published up to this generation, later than `after`.

        Facts that ended are among them: their entries no longer fire, so their names need not go. A later generation
        can publish lower rows than one before it (an interrupted build that was finished), so rows do not tell.
        """
        rows = self._whole(self._names_page(after, None))
        while rows:
            for row in rows:
                for name in _names(row):
                    yield row["row"], row["entry"], name
            rows = self._whole(self._names_page(rows[-1]["made"], rows[-1]["row"]))

    def _names_page(self, made: int, row: int | None) -> list[Any]:
        """The next facts behind this one: those of its own generation, else of later ones."""
        rest = [] if row is None else self._catalog.all(
            f"{_NAMES} WHERE made = ? AND row > ? ORDER BY row LIMIT {_PAGE}", (made, row)
        )  # fmt: skip
        return rest or self._catalog.all(
            f"{_NAMES} WHERE made > ? AND made <= ? ORDER BY made, row LIMIT {_PAGE}", (made, self.generation)
        )

    def stamp_of(self, generation: int) -> str | None:
        """What tells a generation from every other, in another history too; None where there is no such one."""
        return self._catalog.stamp_of(generation)

    def names(self, entry_id: int) -> tuple[str, ...]:
        """All names of the facts that the entry serves or served."""
        rows = self._catalog.all(f"{_NAMES} WHERE entry = :e AND made IS NOT NULL", {"e": int(entry_id)})
        return self._whole(tuple(dict.fromkeys(name for row in rows for name in _names(row))))

    def state(self, entry_id: int) -> str:
        """ "live", "suspended", "contested" or "dead"."""
        return self._states.get(int(entry_id), "live")


_PAGE = 10_000  # facts read at once
_KEPT = 1 << 16  # entries whose facts are remembered
_NAMES = "SELECT row, made, entry, subject, prompt, json_extract(metadata, '$.aliases') AS aliases FROM facts"


def _names(row: Any) -> tuple[str, ...]:
    if not row["aliases"]:
        return names_in_texts(row["subject"], row["prompt"])
    try:
        aliases = parse(row["aliases"])
    except BadJSON:  # one text alone, say: SQLite then gives it without its quotation marks
        aliases = []
    return names_in_texts(row["subject"], row["prompt"], aliases)
