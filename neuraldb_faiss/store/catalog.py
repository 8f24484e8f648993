"""Tables of the catalog: facts, entries, segments, settings and generations."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

from neuraldb_faiss.config import DatabaseConfig, check_settings
from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import schema
from neuraldb_faiss.store.connection import CURE, Connection
from neuraldb_faiss.store.digests import digest_of
from neuraldb_faiss.store.fact_filter import STATES, VISIBLE, RowFilter, conditions
from neuraldb_faiss.store.records import (
    FACT_COLUMNS,
    Generation,
    StoredFact,
    canonical,
    from_row,
    to_row,
)
from neuraldb_faiss.store.segments import ARRAYS, Manifest, SegmentRecord
from neuraldb_faiss.strict_json import MAX_TEXT, is_count, parse, parse_object, parse_strings

FIRING = ("live", "contested")
_MAX_ROWS = 1 << 31  # keys or entries of one segment: its arrays number them with 32 bits
_SHA256 = re.compile("[0-9a-f]{64}")


class Catalog(Connection):
    """Reads and writes the rows of each table; knows no arrays. Its JSON is read by `strict_json`, within bounds."""

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
        return self.one("SELECT generation FROM generations ORDER BY generation DESC LIMIT 1") or 0

    def stamp_of(self, generation: int) -> str | None:
        """What tells a generation from every other, also from one of its number in another history: a hash of its time,
        to the microsecond, and of what it did. None where there is no such one.

        It stays the same for ever; the generation's digest does not, once segments are joined.
        """
        rows = self.all(
            "SELECT generation, time, command, added, updated, removed, facts, entries FROM generations"
            " WHERE generation = ?", (generation,),
        )  # fmt: skip
        return hashlib.sha256(canonical(tuple(rows[0])).encode()).hexdigest() if rows else None

    def generations(self) -> list[Generation]:
        return [Generation(**dict(row)) for row in self.all("SELECT * FROM generations ORDER BY generation")]

    def generation_record(self, generation: int) -> Generation:
        """What the catalog says of one generation. Raises CorruptError where it says nothing."""
        for row in self.all("SELECT * FROM generations WHERE generation = ?", (generation,)):
            return Generation(**dict(row))
        raise CorruptError(f"{self.path}: the row of generation {generation} is missing ({CURE})")

    def keeps(self, generation: int) -> bool:
        """Whether all rows that are visible at `generation` are still there. A compaction forgets those that ended by
        the generation before its own, which therefore stays whole itself."""
        found = self.one("SELECT value FROM settings WHERE name = 'history_start' ORDER BY made DESC LIMIT 1")
        start = parse(found) if isinstance(found, str) else None
        if not isinstance(start, int):
            raise CorruptError(f"{self.path}: its settings do not say where its history starts ({CURE})")
        return generation >= start - 1

    def settings(self, generation: int) -> dict[str, Any]:
        """Every setting as it was at `generation`; none in a database that was only just begun."""
        rows = self.all("SELECT name, value FROM settings WHERE made <= ? ORDER BY made", (generation,))
        newest = {row["name"]: row["value"] for row in rows}
        settings: dict[str, Any] = {}
        name = ""
        try:
            for name, text in newest.items():
                settings[name] = parse(text)
            if rows or self.generation:
                name = ""
                check_settings(settings)
        except ValueError as error:
            which = f"the setting {name[:40]!r} cannot be read: " if name else ""
            raise CorruptError(f"{self.path}: {which}{error} ({CURE})") from None
        return settings

    def config(self, generation: int) -> DatabaseConfig:
        """The settings at `generation`. Raises CorruptError where they are missing or damaged."""
        settings = self.settings(generation)
        if not settings:
            raise CorruptError(f"{self.path}: its settings are missing")
        return DatabaseConfig.of_checked(settings)

    def check_history(self, newest: int) -> int:
        """The first generation that is kept, `newest` being the last. Raises CorruptError where there is none."""
        start = self.config(newest).history_start
        if start > newest:
            raise CorruptError(f"{self.path}: its settings do not say where its history starts ({CURE})")
        return start

    def put_setting(self, name: str, value: Any, generation: int) -> None:
        text = canonical(value)
        if len(text) > MAX_TEXT:
            raise StoreError(f"{self.path}: the setting {name} takes {len(text):,} characters, at most {MAX_TEXT:,}")
        self.run("INSERT OR REPLACE INTO settings VALUES (?, ?, ?)", (name, generation, text))

    def counter(self, name: str) -> int:
        return self.one("SELECT value AS counter FROM counters WHERE name = ?", (name,)) or 0

    def set_counter(self, name: str, value: int) -> None:
        self.run("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    # ---- segments

    def segments(self, generation: int | None) -> list[SegmentRecord]:
        """Those visible at `generation`, in order; the staged ones for None."""
        where = "made IS NULL" if generation is None else "made <= :g"
        rows = self.all(f"SELECT * FROM segments WHERE {where} ORDER BY segment", {"g": generation})
        return [self.segment(row) for row in rows]

    def segment(self, row: Mapping[str, Any] | sqlite3.Row) -> SegmentRecord:
        """A whole row of table segments. Raises CorruptError where it cannot be read."""
        try:
            prefixes, described = parse_strings(row["prefixes"]), parse_object(row["files"])
            files: Manifest = {name: described.get(name, {}) for name in (f"{array}.npy" for array in ARRAYS)}
            if max(row["entries"], row["keys"]) >= _MAX_ROWS:
                raise ValueError(f"{row['entries']} entries and {row['keys']} keys are more than one segment can hold")
            for name, file in files.items():
                if not (isinstance(file, dict) and is_count(file.get("bytes")) and _is_sha256(file.get("sha256"))):
                    raise ValueError(f"size or checksum of {name} is missing")
        except ValueError as error:
            raise CorruptError(f"{self.path}: row {row['segment']} of table segments: {error} ({CURE})") from None
        return SegmentRecord(row["segment"], row["made"], row["entries"], row["keys"], prefixes, files)

    def put_segment(self, record: SegmentRecord) -> None:
        self.run(
            "INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.segment,
                record.made,
                record.entries,
                record.keys,
                canonical(record.prefixes),
                canonical(record.files),
            ),
        )

    # ---- entries

    def states(self, generation: int) -> dict[int, str]:
        """entry -> state, for every entry that is not simply live at `generation`.

        A segment can hold entries of later generations than its own, where a commit joined theirs to it: those are
        dead before the first of their facts.
        """
        later = self.all(
            "SELECT DISTINCT entry FROM facts INDEXED BY facts_made WHERE made > :g AND NOT EXISTS"
            " (SELECT 1 FROM facts AS f WHERE f.entry = facts.entry AND f.made <= :g)", {"g": generation},
        )  # fmt: skip
        rows = self.all(f"{STATES} GROUP BY entry HAVING state <> 'live'", {"g": generation})
        return {row["entry"]: "dead" for row in later} | {row["entry"]: row["state"] for row in rows}

    def states_of(self, generation: int, entries: Iterable[int]) -> dict[int, str]:
        """`states` of these entries, which have facts by then."""
        rows = self.all(
            f"{STATES} AND entry IN (SELECT value FROM json_each(:e)) GROUP BY entry HAVING state <> 'live'",
            {"g": generation, "e": json.dumps(list(entries))},
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

    def facts(self, generation: int, **where: Unpack[RowFilter]) -> Iterator[StoredFact]:
        """Facts that live at `generation`, in the order they came, narrowed by what is given.

        A fact can have a row for each of several entries (one subject at position 0 and elsewhere; two databases that
        both held it); the first stands for it unless `every_row`.
        """
        condition, values = conditions(where)
        sql = f"SELECT * FROM facts WHERE {condition} AND row > :after ORDER BY row LIMIT :limit"
        limit, values["after"] = where.get("limit"), where.get("after", -1)
        # In pages, so that a slow reader never holds a writer's commit back.
        left = limit if limit is not None else 1 << 62
        while left > 0:
            rows = self.all(sql, {**values, "g": generation, "limit": min(left, 10_000)})
            states = self.states_of(generation, {row["entry"] for row in rows})
            yield from (self.fact(row, states) for row in rows)
            if len(rows) < min(left, 10_000):
                return
            left -= len(rows)
            values["after"] = rows[-1]["row"]

    def readable_facts(self, generation: int, on_bad: Callable[[str], None]) -> Iterator[StoredFact]:
        """The facts that live at `generation`, one at a time; of rows that cannot be read `on_bad` is told."""
        seen: set[str] = set()
        rows = self.all(f"SELECT row FROM facts WHERE {VISIBLE} ORDER BY row", {"g": generation})
        for (number,) in rows:
            try:
                fact = self.fact(self.all("SELECT * FROM facts WHERE row = ?", (number,))[0], {})
            except CorruptError as error:
                on_bad(str(error))
                continue
            if fact.identity not in seen:
                seen.add(fact.identity)
                yield fact

    def fact(self, row: sqlite3.Row, states: Mapping[int, str]) -> StoredFact:
        """A whole row of table facts; `states` as `states` gives them. Raises CorruptError where it breaks a rule."""
        try:
            return from_row(row, states)
        except CorruptError as error:
            raise CorruptError(f"{self.path}: {error} ({CURE})") from None

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
        self.run(f"INSERT INTO facts ({columns}, made) SELECT {columns}, ? FROM temp.gathered ORDER BY rowid", (made,))
        for name in indices:
            self.run(schema.TABLES[name])
        self.run("DROP TABLE temp.gathered")

    def end_facts(self, rows: Iterable[int], generation: int) -> None:
        self.many("UPDATE facts SET ended = ? WHERE row = ?", ((generation, row) for row in rows))

    def forget(self, generation: int) -> None:
        """Delete what lived only before `generation`: ended facts, states and settings since replaced."""
        g = {"g": generation}
        self.run("DELETE FROM facts WHERE ended <= :g", g)
        self.run(
            "DELETE FROM entry_states WHERE made < (SELECT MAX(made) FROM entry_states AS s"
            " WHERE s.entry = entry_states.entry)"
        )
        self.run("DELETE FROM entry_states WHERE state IN ('live', 'dead')")
        self.run("DELETE FROM settings WHERE made < (SELECT MAX(made) FROM settings AS s WHERE s.name = settings.name)")

    # ---- digests

    def digest(self, generation: int) -> str:
        """See `digests`."""
        return digest_of(self, generation)

    def put_generation(self, generation: Generation) -> None:
        """Insert it and set its digest; its rows must be in place."""
        values = tuple(generation.to_dict().values())
        self.run("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self.run(
            "UPDATE generations SET digest = ? WHERE generation = ?",
            (self.digest(generation.generation), generation.generation),
        )


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and bool(_SHA256.fullmatch(value))
