"""The catalog: the only source of truth about what a database holds, at every generation."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import files, schema, sqlite_files
from neuraldb_faiss.store.records import (
    FACT_COLUMNS,
    Generation,
    StoredFact,
    canonical,
    canonical_rows,
    from_row,
    subject_key,
    to_row,
)
from neuraldb_faiss.store.segments import ARRAYS, SegmentRecord

VISIBLE = "made <= :g AND (ended IS NULL OR ended > :g)"
FIRING = ("live", "contested")
WAITING = ("suspended", "contested")
_ROWS = 500  # read at once for a digest


class Catalog:
    """Reads and writes rows; knows no arrays. Threads may share one (its calls are serialised).

    Raises:
        StoreError, FormatError, CorruptError: as `schema.connect`, and wherever SQLite fails.
    """

    def __init__(self, root: Path, *, write: bool = False, create: bool = False) -> None:
        self.root = root
        self.path = root / schema.NAME
        self._lock = threading.RLock()
        self._connection, self.place = schema.connect(root, write=write, create=create)
        self._connection.row_factory = sqlite3.Row

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @property
    def in_place(self) -> bool:
        """Whether the file at our path is the one that is open: False once that was moved, removed or replaced."""
        return files.place_of(self.path) == self.place

    def check_place(self) -> None:
        """Raises StoreError where another file lies at the catalog's path than the one that is open here."""
        if not self.in_place:
            raise StoreError(
                f"{self.root} was moved or replaced since it was opened: nothing was written; open it again"
            )
        sqlite_files.check_files(self.path, write=True)

    # ---- running statements

    def all(self, sql: str, values: Any = ()) -> list[sqlite3.Row]:
        with self._lock:
            if not self._connection.in_transaction:
                sqlite_files.check_beside(self.path)
            try:
                return self._connection.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise schema.as_store_error(error, self.path) from error

    def one(self, sql: str, values: Any = ()) -> Any:
        """The first column of the first row, or None."""
        rows = self.all(sql, values)
        return rows[0][0] if rows else None

    def run(self, sql: str, values: Any = ()) -> int:
        """Execute inside a transaction; returns the number of rows changed."""
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise schema.as_store_error(error, self.path) from error

    def many(self, sql: str, rows: Iterable[Any]) -> None:
        try:
            self._connection.executemany(sql, rows)
        except sqlite3.Error as error:
            raise schema.as_store_error(error, self.path) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; one inside another is part of it."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            sqlite_files.check_beside(self.path)
            self.run("BEGIN IMMEDIATE")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @property
    def changing(self) -> bool:
        """Whether a transaction is open."""
        return self._connection.in_transaction

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the database for every statement inside, whatever is committed meanwhile."""
        with self._lock:
            nested = self._connection.in_transaction
            if not nested:
                self.all("BEGIN")
            try:
                yield
            finally:
                if not nested:
                    self.all("COMMIT")

    @contextmanager
    def attached(self, path: Path) -> Iterator[str]:
        """Another catalog, already checked, readable in our statements under the name this yields."""
        sqlite_files.check_files(path, write=False)
        with self._lock:
            self.all("ATTACH ? AS other", (f"{path.absolute().as_uri()}?mode=ro",))
            try:
                yield "other"
            finally:
                self.all("DETACH other")

    def copy_to(self, path: Path) -> None:
        """Write what is committed into the new file `path`; a writer may go on meanwhile."""
        with self._lock, closing(sqlite3.connect(path)) as target:
            sqlite_files.check_beside(self.path)
            try:
                self._connection.backup(target)
            except sqlite3.Error as error:
                raise schema.as_store_error(error, self.path) from error

    def clean(self) -> None:
        """Drop what is staged, and what deleted rows leave in the file's free pages."""
        with self.transaction():
            self.drop_staged()
        self.all("VACUUM")

    def has_staged(self) -> bool:
        """Whether anything is staged: where nothing is, nothing needs to be written to forget it."""
        staged = ("facts WHERE made IS NULL", "segments WHERE made IS NULL", "staging")
        return bool(self.one(f"SELECT {' OR '.join(f'EXISTS (SELECT 1 FROM {one})' for one in staged)}"))

    def drop_staged(self) -> None:
        """Inside a transaction: forget every staged piece."""
        self.run("DELETE FROM facts WHERE made IS NULL")
        self.run("DELETE FROM segments WHERE made IS NULL")
        self.run("DELETE FROM staging")

    # ---- generations and settings

    @property
    def generation(self) -> int:
        """The last committed generation; 0 where nothing was published yet."""
        return self.one("SELECT MAX(generation) FROM generations") or 0

    def digest_of(self, generation: int) -> str | None:
        """The digest that is kept of a generation; None where there is no such one."""
        digest = self.one("SELECT digest FROM generations WHERE generation = ?", (generation,))
        return None if digest is None else str(digest)

    def generations(self) -> list[Generation]:
        return [Generation(**dict(row)) for row in self.all("SELECT * FROM generations ORDER BY generation")]

    def settings(self, generation: int) -> dict[str, Any]:
        """Every setting as it was at `generation`."""
        rows = self.all("SELECT name, value FROM settings WHERE made <= ? ORDER BY made", (generation,))
        try:
            settings = {row["name"]: json.loads(row["value"]) for row in rows}
        except ValueError as error:
            raise CorruptError(f"{self.path}: a setting cannot be read ({error})") from None
        for name in ("d1", "d2", "epoch", "history_start"):
            if rows and (type(settings.get(name)) is not int or settings[name] < 0):
                raise CorruptError(f"{self.path}: the setting {name} is missing or no number")
        return settings

    def put_setting(self, name: str, value: Any, generation: int) -> None:
        self.run("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (name, generation, canonical(value)))

    def counter(self, name: str) -> int:
        return self.one("SELECT value FROM counters WHERE name = ?", (name,)) or 0

    def set_counter(self, name: str, value: int) -> None:
        self.run("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    # ---- segments

    def segments(self, generation: int | None) -> list[SegmentRecord]:
        """Those visible at `generation`, in order; the staged ones for None."""
        where = "made IS NULL" if generation is None else "made <= :g"
        rows = self.all(f"SELECT * FROM segments WHERE {where} ORDER BY segment", {"g": generation})
        try:
            return [
                SegmentRecord(
                    row["segment"], row["made"], row["entries"], row["keys"], tuple(json.loads(row["prefixes"])),
                    {f"{name}.npy": dict(json.loads(row["files"])[f"{name}.npy"]) for name in ARRAYS},
                )  # fmt: skip
                for row in rows
            ]
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(f"{self.path}: table segments cannot be read ({error!r})") from None

    def put_segment(self, record: SegmentRecord) -> None:
        self.run(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)",
            (record.segment, record.made, record.entries, record.keys, canonical(record.prefixes),
             canonical(record.files)),
        )

    # ---- entries

    def states(self, generation: int, entry: int | None = None) -> dict[int, str]:
        """entry -> state, for every entry that is not simply live at `generation`."""
        where = "" if entry is None else "AND entry = :e"
        rows = self.all(
            "SELECT entry, state, MAX(made) FROM entry_states"
            f" WHERE made <= :g {where} GROUP BY entry HAVING state <> 'live'",
            {"g": generation, "e": entry},
        )
        return {row["entry"]: row["state"] for row in rows}

    def put_state(self, entry: int, state: str, generation: int) -> None:
        self.run("INSERT OR REPLACE INTO entry_states VALUES (?, ?, ?)", (entry, generation, state))

    # ---- facts

    def put_facts(self, facts: Iterable[StoredFact], made: int | None) -> None:
        marks = ", ".join("?" * len(FACT_COLUMNS))
        self.many(
            f"INSERT INTO facts ({', '.join(FACT_COLUMNS)}, made) VALUES ({marks}, ?)",
            ((*to_row(stored), made) for stored in facts),
        )

    def facts(
        self,
        generation: int,
        *,
        ids: Sequence[str] | None = None,
        identities: Sequence[str] | None = None,
        key_ids: Sequence[str] | None = None,
        subject: str | None = None,
        contains: str | None = None,
        source: str | None = None,
        entry: int | None = None,
        failed: bool = False,
        waiting: bool = False,
        every_row: bool = False,
        limit: int | None = None,
        after: int = -1,
    ) -> Iterator[StoredFact]:
        """Facts that live at `generation`, in the order they came, narrowed by what is given.

        A fact can have a row for each of several entries (one subject at position 0 and elsewhere; two databases that
        both held it); the first stands for it unless `every_row`. `after`: only rows that come behind this one.
        """
        where = [VISIBLE]
        values: dict[str, Any] = {"g": generation}
        if subject is not None:
            where.append("subject_key = :subject")
            values["subject"] = subject_key(subject)
        if contains is not None:
            escaped = contains.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
            values["like"] = f"%{escaped}%"
            like = " OR ".join(f"{column} LIKE :like ESCAPE '\\'" for column in ("subject", "prompt", "target"))
            where.append(f"({like})")
        if source is not None:
            where.append("EXISTS (SELECT 1 FROM json_each(sources) WHERE value = :source)")
            values["source"] = source
        if entry is not None:
            where.append("entry = :entry")
            values["entry"] = entry
        if failed:
            where.append("took = 0")
        if not every_row and entry is None:
            where.append(
                "row = (SELECT MIN(row) FROM facts AS other WHERE other.identity = facts.identity"
                " AND other.made <= :g AND (other.ended IS NULL OR other.ended > :g))"
            )
        states = self.states(generation, entry)
        if waiting:
            where.append("entry IN (SELECT value FROM json_each(:waiting))")
            values["waiting"] = json.dumps([e for e, state in states.items() if state in WAITING])
        names = {"id": ids, "identity": identities, "key_id": key_ids}
        for column, wanted in names.items():
            if wanted is not None:
                where.append(f"{column} IN (SELECT value FROM json_each(:{column}))")
                values[column] = json.dumps(list(wanted))
        sql = f"SELECT * FROM facts WHERE {' AND '.join(where)} AND row > :after ORDER BY row LIMIT :limit"
        # In pages, so that a slow reader never holds a writer's commit back.
        values["after"], left = after, limit if limit is not None else 1 << 62
        while left > 0:
            rows = self.all(sql, {**values, "limit": min(left, 10_000)})
            yield from (from_row(row, states) for row in rows)
            if len(rows) < min(left, 10_000):
                return
            left -= len(rows)
            values["after"] = rows[-1]["row"]

    def count_facts(self, generation: int) -> int:
        """Distinct facts that live at `generation` (counted; `generations` keeps the figure)."""
        return self.one(f"SELECT COUNT(DISTINCT identity) FROM facts WHERE {VISIBLE}", {"g": generation})

    def count_sources(self, generation: int) -> dict[str, int]:
        """Source -> how many of its facts live at `generation`, the largest first."""
        rows = self.all(
            "SELECT value, COUNT(DISTINCT identity) AS number FROM facts, json_each(sources)"
            f" WHERE {VISIBLE} GROUP BY value ORDER BY number DESC, value", {"g": generation},
        )  # fmt: skip
        return {row["value"]: row["number"] for row in rows}

    def gather(self, sources: Iterable[tuple[Path, int, int]]) -> None:
        """Collect what `take` will insert: the live facts of other catalogs, already checked, each given as its path,
        its generation, and what its entry ids are moved by. Afterwards nothing is locked, neither there nor here."""
        columns = ", ".join(FACT_COLUMNS)
        self.run("DROP TABLE IF EXISTS temp.gathered")
        self.run(f"CREATE TEMP TABLE gathered AS SELECT {columns} FROM main.facts LIMIT 0")
        for path, generation, shift in sources:
            with self.attached(path) as other:
                self.run(
                    f"INSERT INTO temp.gathered SELECT {columns.replace('entry', ':shift + entry')}"
                    f" FROM {other}.facts WHERE {VISIBLE} ORDER BY row", {"g": generation, "shift": shift},
                )  # fmt: skip

    def take(self, made: int | None) -> None:
        """Inside a transaction: insert the facts that were gathered, in their order."""
        columns = ", ".join(FACT_COLUMNS)
        more = self.one("SELECT COUNT(*) FROM temp.gathered")
        # Where most of the table is new it is quicker to make the indices afterwards, sorted.
        mostly = more > self.one("SELECT COUNT(*) FROM facts")
        indices = [name for name, sql in schema.TABLES.items() if mostly and sql.startswith("CREATE INDEX")]
        for name in indices:
            self.run(f"DROP INDEX {name}")
        self.run(
            f"INSERT INTO facts ({columns}, made) SELECT {columns}, ? FROM temp.gathered ORDER BY rowid", (made,)
        )
        for name in indices:
            self.run(schema.TABLES[name])
        self.run("DROP TABLE temp.gathered")

    def end_facts(self, rows: Iterable[int], generation: int) -> None:
        self.many("UPDATE facts SET ended = ? WHERE row = ?", ((generation, row) for row in rows))

    def forget(self, generation: int) -> None:
        """Delete what lived only before `generation`: ended facts, states and settings since replaced."""
        g = {"g": generation}
        self.run("DELETE FROM facts WHERE ended <= :g", g)
        self.run("DELETE FROM entry_states WHERE made < (SELECT MAX(made) FROM entry_states AS s"
                 " WHERE s.entry = entry_states.entry)")
        self.run("DELETE FROM entry_states WHERE state IN ('live', 'dead')")
        self.run("DELETE FROM settings WHERE made < (SELECT MAX(made) FROM settings AS s"
                 " WHERE s.name = settings.name)")

    # ---- digests

    def digest(self, generation: int) -> str:
        """SHA-256 over everything `generation` made or ended, chained to the generation before it.

        SQLite's own check misses most flipped bits; this one does not.
        """
        digest = hashlib.sha256()

        def feed(sql: str) -> None:
            with self._lock, closing(self._connection.cursor()) as cursor:
                cursor.row_factory = None
                try:
                    cursor.execute(sql, {"g": generation})
                    while rows := cursor.fetchmany(_ROWS):
                        digest.update(canonical_rows(rows).encode())
                except (sqlite3.Error, UnicodeError) as error:
                    raise StoreError(f"{self.path}: cannot be read ({error})") from error

        # The first generation of the kept history also answers for the rows that compaction kept.
        start = self.settings(generation).get("history_start", 1)
        made = "made = :g" if generation != start else "made <= :g"
        if generation != start:
            feed("SELECT digest FROM generations WHERE generation = :g - 1")
        feed("SELECT generation, time, command, added, updated, removed, facts, entries FROM generations"
             " WHERE generation = :g")
        feed(f"SELECT * FROM settings WHERE {made} ORDER BY name, made")
        feed(f"SELECT * FROM segments WHERE {made} ORDER BY segment")
        feed(f"SELECT * FROM entry_states WHERE {made} ORDER BY entry, made")
        feed(f"SELECT row, {', '.join(FACT_COLUMNS)}, made FROM facts WHERE {made} ORDER BY row")
        feed("SELECT row FROM facts WHERE ended = :g ORDER BY row")
        return digest.hexdigest()

    def put_generation(self, generation: Generation) -> None:
        """Insert it and set its digest; its rows must be in place."""
        values = tuple(generation.to_dict().values())
        self.run("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.run(
            "UPDATE generations SET digest = ? WHERE generation = ?",
            (self.digest(generation.generation), generation.generation),
        )
