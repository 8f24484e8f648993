"""A writer's transaction: staged pieces become visible, and rows end, in one SQLite commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neuraldb_faiss.errors import CorruptError, FactError, StoreError
from neuraldb_faiss.store import files
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.digests import renew_digests
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.intact import ErrorOf, column, error_for, open_segment
from neuraldb_faiss.store.joining import join_small
from neuraldb_faiss.store.records import Generation, StoredFact
from neuraldb_faiss.store.segments import (
    Column,
    Rows,
    SegmentRecord,
    columns_of,
    is_segment_name,
    write_columns,
)

Chunks = Callable[[], Iterable[Rows]]

SEGMENT_ENTRIES = 65_536  # staged pieces are joined up to this size when they are published


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def moment() -> str:
    """`now`, to the microsecond: no two generations of one number are made at the same."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _staged_error(record: SegmentRecord, what: str) -> CorruptError:
    return CorruptError(f"{what}; it was not published yet: run the same command again, which begins anew")


class Transaction:
    """Made by `Store.write`, which holds the lock. Nothing is visible before `commit`."""

    def __init__(self, root: Path, catalog: Catalog, command: str) -> None:
        self.root = root
        self.catalog = catalog
        self.command = command
        self.base = catalog.generation
        self.generation = self.base + 1
        config = catalog.config(self.generation)
        self.d1 = config.d1
        self.d2 = config.d2
        self.prefixes = config.prefixes
        self._ended: set[int] = set()
        self._inserted: list[StoredFact] = []
        self._states: dict[int, str] = {}
        self._settings: dict[str, Any] = {}
        self._segments: list[SegmentRecord] = []
        self._dropped: list[int] | None = None
        self._publish = False
        self._replace = True
        self.sweep()

    # ---- staging: durable at once, invisible until the commit

    @property
    def states(self) -> dict[int, str]:
        """What the commit will set so far."""
        return self._states

    @property
    def ended(self) -> set[int]:
        """The fact rows that the commit will end so far."""
        return self._ended

    @property
    def next_entry(self) -> int:
        """The first entry id that was never given out."""
        return self.catalog.counter("entries")

    def resume(self, plan: str) -> int:
        """How many pieces of exactly this plan are staged already; pieces of another plan are dropped.

        The commit publishes them (small ones joined into large segments), and staged facts take the place of live
        ones with the same subject and prompt. A transaction that never asks leaves staged pieces alone.
        """
        self._publish = True
        if self.catalog.one("SELECT value FROM staging WHERE name = 'plan'") != plan:
            self.drop()
            with self.catalog.transaction():
                self.catalog.run("INSERT INTO staging VALUES ('plan', ?)", (plan,))
        return len(self.catalog.segments(None))

    def restart(self) -> None:
        """Stage afresh, and publish just as staged: nothing is joined, and no live fact is replaced."""
        self.drop()
        self._publish, self._replace = True, False

    def drop(self) -> None:
        """Forget every staged piece."""
        if self.catalog.has_staged():
            with self.catalog.transaction():
                self.catalog.drop_staged()
        self.sweep()

    def stage(
        self,
        keys: np.ndarray,
        key_rows: np.ndarray,
        key_tokens: np.ndarray,
        residuals: np.ndarray,
        facts: Sequence[StoredFact],
    ) -> None:
        """Write one piece: m new entries with their keys, and the facts they serve.

        Args:
            keys: float32 [n, d1], any length, in the order of their entries.
            key_rows: [n], which of the m entries each belongs to.
            key_tokens: [n], see `Rows`.
            residuals: float32 [m, d2].
            facts: `entry` counts within the piece, 0 to m-1.
        """
        first = self.next_entry
        entries = np.arange(first, first + len(residuals), dtype=np.int64)
        rows = Rows.encode(keys, key_rows, key_tokens, residuals, entries)
        record = self.new_segment(len(residuals), len(keys), lambda: [rows])
        with self.catalog.transaction():
            self.catalog.put_segment(record)
            self.catalog.put_facts((replace(fact, entry=first + fact.entry) for fact in facts), made=None)
            self.catalog.set_counter("entries", first + len(residuals))
            self.catalog.set_counter("segments", record.segment)

    def new_segment(
        self, entries: int, keys: int, chunks: Chunks, offset: int = 1, prefixes: tuple[str, ...] = ()
    ) -> SegmentRecord:
        """Write arrays under the next segment number (`offset` past the last one named in the catalog).

        `prefixes` are those of its keys; the database's own by default.
        """
        return self.write_columns(entries, keys, columns_of(chunks), offset, prefixes)

    def write_columns(
        self, entries: int, keys: int, column: Column, offset: int = 1, prefixes: tuple[str, ...] = ()
    ) -> SegmentRecord:
        """As `new_segment`, where `column(name)` yields the rows of each array."""
        number = self.catalog.counter("segments") + offset
        record = SegmentRecord(number, None, entries, keys, prefixes or self.prefixes, {})
        folder = self.root / "segments" / record.name
        return replace(record, files=write_columns(folder, entries, keys, self.d1, self.d2, column))

    def write_as_one(
        self, parts: Sequence[SegmentRecord], offset: int, error_of: ErrorOf | None = None
    ) -> SegmentRecord:
        """`new_segment` with all rows of these segments, which have the same prefixes and are as they were written."""
        error_of = error_of or error_for(self.catalog, self.base)
        opened = [open_segment(self.root, part, self.d1, self.d2, error_of) for part in parts]
        kept = [(segment, np.ones(segment.record.entries, bool)) for segment in opened]
        sizes = sum(part.entries for part in parts), sum(part.keys for part in parts)
        return self.write_columns(*sizes, partial(column, kept=kept, error_of=error_of), offset, parts[0].prefixes)

    # ---- what else the commit will do

    def end(self, rows: Iterable[int]) -> None:
        """End these fact rows."""
        self._ended.update(rows)

    def insert(self, facts: Iterable[StoredFact]) -> None:
        """Make these rows (their entries exist or are added by this transaction)."""
        self._inserted.extend(facts)

    def set_state(self, entry: int, state: str) -> None:
        self._states[entry] = state

    def set_setting(self, name: str, value: Any) -> None:
        self._settings[name] = value

    def add_segment(self, record: SegmentRecord) -> None:
        """A segment whose files are in place (`new_segment`, or copied by a merge)."""
        self._segments.append(record)

    def replace_segments(self, old: Iterable[int]) -> None:
        """Drop these segments: compaction. The added ones take their place."""
        self._dropped = list(old)

    # ---- commit

    def commit(self) -> Generation:
        """Publish, as one new generation.

        Raises:
            FactError: two facts would have one id.
            CorruptError: a staged piece was damaged meanwhile. All are dropped, so the same command begins anew.
        """
        g, catalog = self.generation, self.catalog
        pieces = catalog.segments(None) if self._publish else []
        staged = self._join_staged(pieces) if self._replace else pieces
        new = [replace(segment, made=g) for segment in (*staged, *self._segments)]
        small = None
        # Nothing before a first build or a compaction is kept; and inside a larger transaction the files of `new` may
        # still be on their way.
        if self.base and self._dropped is None and not catalog.changing:
            small = join_small(self, [*catalog.segments(self.base), *new])
        with catalog.transaction():
            catalog.many("DELETE FROM segments WHERE segment = ?", ((p.segment,) for p in pieces))
            kept = new
            if small is not None:
                catalog.many("DELETE FROM segments WHERE segment = ?", ((part,) for part in small.parts))
                kept = [*(segment for segment in new if segment.segment not in small.parts), small.whole]
            for segment in kept:
                catalog.put_segment(segment)
                catalog.set_counter("segments", max(segment.segment, catalog.counter("segments")))
            if self._dropped is not None:
                catalog.many("DELETE FROM segments WHERE segment = ?", ((s,) for s in self._dropped))
                catalog.forget(self.base)
            if self._publish:
                if self._replace:
                    catalog.run(
                        f"UPDATE facts SET ended = :g WHERE {VISIBLE} AND identity IN"
                        " (SELECT identity FROM facts WHERE made IS NULL)",
                        {"g": g},
                    )
                catalog.run("UPDATE facts SET made = ? WHERE made IS NULL", (g,))
                catalog.run("DELETE FROM staging")
            catalog.end_facts(sorted(self._ended), g)
            catalog.put_facts(self._inserted, made=g)
            for name, value in self._settings.items():
                catalog.put_setting(name, value, g)
            self._check_ids()
            new_entries = sum(segment.entries for segment in new) if self._dropped is None else 0
            delta = new_entries + self._apply_states()
            generation = self._count(delta)
            if small is not None:
                renew_digests(catalog, small.first, self.base)
            catalog.put_generation(generation)
        if not catalog.changing:  # else what is inside a larger transaction may still be undone
            with suppress(StoreError):  # a commit that is done stays done
                self.sweep()
        return catalog.generation_record(g)

    def _join_staged(self, pieces: list[SegmentRecord]) -> list[SegmentRecord]:
        try:
            return self._join(pieces)
        except CorruptError:
            self.drop()
            raise

    def _join(self, pieces: list[SegmentRecord]) -> list[SegmentRecord]:
        """Join staged pieces into segments of up to SEGMENT_ENTRIES, keeping entry ids and order."""
        groups: list[list[SegmentRecord]] = []
        for piece in pieces:
            room = bool(groups) and sum(p.entries for p in groups[-1]) + piece.entries <= SEGMENT_ENTRIES
            if room and groups[-1][0].prefixes == piece.prefixes:
                groups[-1].append(piece)
            else:
                groups.append([piece])
        joined = []
        offset = 1
        newest = max((s.segment for s in self.catalog.segments(self.base)), default=0)
        for group in groups:
            if len(group) == 1 and group[0].segment > newest:  # later segments must have higher numbers
                joined.append(group[0])
                continue
            joined.append(self.write_as_one(group, offset, _staged_error))
            offset += 1
        return joined

    def _check_ids(self) -> None:
        g = {"g": self.generation}
        if self.base:
            new = f"SELECT id, identity FROM facts WHERE made = :g AND {VISIBLE}"
            twice = self.catalog.all(
                f"SELECT n.id FROM ({new}) AS n WHERE EXISTS (SELECT 1 FROM facts WHERE id = n.id"
                f" AND identity <> n.identity AND {VISIBLE}) LIMIT 1", g,
            )  # fmt: skip
        else:  # all rows are new: quicker from the other end
            twice = self.catalog.all(
                # An id that somebody chose is part of every clash; the others are the identities themselves.
                f"SELECT id FROM facts WHERE {VISIBLE} AND id IN (SELECT id FROM facts WHERE id <> identity)"
                " GROUP BY id HAVING COUNT(DISTINCT identity) > 1 LIMIT 1", g,
            )  # fmt: skip
        if twice:
            raise FactError(f"two different facts have the id {twice[0]['id']!r}: give one of them another id")

    def _apply_states(self) -> int:
        """Entries whose facts ended fall silent (all ended: dead, some: suspended); the change in their number."""
        g, catalog = self.generation, self.catalog
        touched = catalog.all(
            "SELECT entry, key_id, COUNT(DISTINCT CASE WHEN ended IS NULL OR ended > :g THEN identity END) AS alive,"
            " COUNT(DISTINCT identity) AS served FROM facts WHERE made IS NOT NULL AND (ended IS NULL OR ended >= :g)"
            " AND entry IN (SELECT entry FROM facts WHERE ended = :g) GROUP BY entry",
            {"g": g},
        )
        states = dict(self._states)
        for row in touched:
            if row["alive"] < row["served"]:
                states[row["entry"]] = "suspended" if row["alive"] else "dead"
        if touched and catalog.one("SELECT EXISTS (SELECT 1 FROM entry_states WHERE state = 'contested')"):
            self._settle_contests({row["key_id"] for row in touched}, states)
        before = catalog.states_of(self.base, states)
        delta = 0
        for entry, state in states.items():
            old = before.get(entry, "live")
            if state != old:
                catalog.put_state(entry, state, g)
                delta += (old == "dead") - (state == "dead")
        return delta

    def _settle_contests(self, key_ids: set[str], states: dict[int, str]) -> None:
        """An entry that was contested and is now the only one with its key is live again."""
        for key_id in sorted(key_ids):
            rows = self.catalog.all(
                f"SELECT DISTINCT entry FROM facts WHERE key_id = :k AND {VISIBLE}", {"k": key_id, "g": self.generation}
            )
            left = [row["entry"] for row in rows]
            if len(left) == 1:
                before = self.catalog.states_of(self.base, left).get(left[0])
                if states.get(left[0], before) == "contested":
                    states[left[0]] = "live"

    def _count(self, delta_entries: int) -> Generation:
        g, base, catalog = self.generation, self.base, self.catalog
        was = "made <= :b AND (ended IS NULL OR ended > :b)"

        def count(where: str) -> int:
            return catalog.one(f"SELECT COUNT(DISTINCT identity) FROM facts AS f WHERE {where}", {"g": g, "b": base})

        last = catalog.all("SELECT facts, entries FROM generations WHERE generation = ?", (base,))
        facts, entries = (last[0]["facts"], last[0]["entries"]) if last else (0, 0)
        if not base and self._publish:  # every row is of this generation: the index on identities knows their number
            added = catalog.one("SELECT COUNT(*) FROM (SELECT DISTINCT identity FROM facts)")
            return Generation(g, moment(), self.command, added, 0, 0, added, delta_entries, "")
        if not facts:
            added = count("made = :g")
            return Generation(g, moment(), self.command, added, 0, 0, added, entries + delta_entries, "")
        # Inside a subquery a bare column name is the inner table's.
        old = f"SELECT 1 FROM facts AS o WHERE o.identity = f.identity AND {was}"
        added = count(f"made = :g AND NOT EXISTS ({old})")
        updated = count(f"made = :g AND EXISTS ({old} AND o.target <> f.target)")
        new = f"SELECT 1 FROM facts AS n WHERE n.identity = f.identity AND {VISIBLE}"
        removed = count(f"ended = :g AND NOT EXISTS ({new})")
        return Generation(
            g, moment(), self.command, added, updated, removed, facts + added - removed, entries + delta_entries, ""
        )

    def sweep(self) -> None:
        """Remove segment folders that the catalog does not name: left by a killed writer, or replaced.

        Inside a write transaction, and only where the catalog that is asked is the one that lies here. What is named
        otherwise than a segment is not ours, and stays.

        Raises:
            StoreError: the database was moved or replaced; a segment's name is that of a link or a file.
        """
        with self.catalog.transaction():
            self.catalog.check_place()
            folder = files.within(self.root, self.root / "segments")
            if not folder.exists():
                return
            named = {f"{row['segment']:08d}" for row in self.catalog.all("SELECT segment FROM segments")}
            for path in folder.iterdir():
                if path.name in named or not is_segment_name(path.name):
                    continue
                if not files.within(self.root, path).is_dir():
                    raise StoreError(f"{path} does not belong there: remove it")
                with suppress(OSError):  # what cannot go now is in nobody's way
                    files.remove_tree(path)
