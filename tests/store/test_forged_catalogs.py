"""Catalogs in which anything may stand anywhere: every command works, or refuses with an error of ours.

Set NEURALDB_FORGERIES to the number of forgeries to try (40 by default).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from helpers.exchanged import EDITOR
from helpers.fake_editor import D1
from neuraldb_faiss import NeuralDB, integrity
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.hub import save
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, rollback, schema

FORGERIES = int(os.environ.get("NEURALDB_FORGERIES", "40"))
COLUMNS = {
    "generations": ("generation", "time", "command", "added", "updated", "removed", "facts", "entries", "digest"),
    "settings": ("name", "made", "value"),
    "segments": ("segment", "made", "entries", "keys", "prefixes", "files"),
    "facts": (
        "row", "id", "identity", "subject", "subject_key", "prompt", "target", "target_true", "relation", "sources",
        "metadata", "entry", "key_id", "time", "residual", "loss", "nll", "probability", "took", "made", "ended",
    ),
    "entry_states": ("entry", "made", "state"),
    "counters": ("name", "value"),
    "staging": ("name", "value"),
}  # fmt: skip
PLACES = [(table, column) for table, columns in COLUMNS.items() for column in columns]

DEEP = {"unclosed": "[" * 100_000, "objects": '{"a":' * 500 + "1" + "}" * 500, "lists": "[" * 900 + "]" * 900}
VALUES: dict[str, Any] = {
    "null": None, "zero": 0, "minus": -1, "7": 7, "2**31": 2**31, "2**53": 2**53, "most": 2**63 - 1, "least": -(2**63),
    "real": 1.5, "infinite": float("inf"), "blob": b"\xff\0{", "empty": "", "word": "word", "nul": "a\0b",
    "not UTF-8": "CAST(x'22ff22' AS TEXT)", "long": "x" * 1_000_000, "digits": "9" * 6000, "digits inside":
    '{"a": [' + "9" * 6000 + "]}", "1e999": "[1e999]", "NaN": '{"a": NaN}', "surrogate": '{"a": "\\ud800"}',
    "JSON null": "null", "JSON true": "true", "JSON list": "[]", "JSON object": "{}", "JSON numbers": "[1, 2]",
    "JSON texts": '["a"]', "JSON text": '"a"', "nested": '{"a": {"b": [1]}}',
    "aliases": '{"aliases": {"a": [7]}}', **DEEP,
}  # fmt: skip
LEAVES = [
    "null", "true", "-1", "1e999", "9" * 6000, str(2**63 - 1), str(2**53), '"a"', "[]", "{}", '[["a"]]', "NaN", "0.5",
]  # fmt: skip


@pytest.fixture(scope="module")
def original() -> Iterator[Path]:
    """Five generations with segments of two commits, all states, a staged piece and a calibrated name."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=parent) as name:
        root = Path(name) / "db"
        facts = [
            Fact("Oslo", "{} is in", "Peru", source="a", metadata={"aliases": ["Kristiania"], "case_id": 7}),
            Fact("Marie Curie", "I know that {} was born in", "Tokyo", source="a", target_true="Warsaw"),
            Fact("Marie Curie", "I know that {} died in", "Nice", id="curie"),
        ]
        store = changes.build(facts, EDITOR, root)
        changes.add(store, EDITOR, [Fact("Lima", "In {} they speak", "Latin", relation="P37")])
        changes.remove(store, list(store.catalog.facts(2, ids=["curie"])))
        changes.add(store, EDITOR, [Fact("Lima", "In {} they speak", "Dutch")])
        with store.write("calibrate") as tx:
            tx.set_setting("floors", {"Lima": 0.75})
            tx.set_setting("guard", "subject")
            tx.commit()
        with store.write("stage") as tx:
            tx.resume("a plan")
            keys = EDITOR.make_keys(facts[:1])
            row = next(store.catalog.facts(5))
            residuals = EDITOR.make_residuals([facts[:1]])[0].residual[None]
            tx.stage(keys.keys, keys.fact, keys.token, residuals, [replace(row, entry=0)])
        store.close()
        yield root


def forge(root: Path, table: str, column: str, row: int, value: Any, honest: bool) -> None:
    """Put a value, of any type, into one column of one row (of all for -1); `honest`: digests are made anew."""
    statements = {table: schema.TABLES[table]}
    loose = statements[table].replace(" STRICT", "").replace(", WITHOUT ROWID", " WITHOUT ROWID")
    loose = loose.replace("INTEGER PRIMARY KEY", "@").replace("TEXT PRIMARY KEY", "#")
    for word in (" TEXT", " INTEGER", " REAL"):
        loose = loose.replace(word, "")
    if "WITHOUT" not in loose:  # its key may not be NULL anyway
        loose = loose.replace(" NOT NULL", "")
    loose = loose.replace("@", "INTEGER PRIMARY KEY").replace("#", "PRIMARY KEY")

    def redefine(sql: str) -> None:
        with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
            connection.commit()

    redefine(loose)
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        number = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
        by = ", ".join(COLUMNS[table][:2])
        keys = connection.execute(f"SELECT {by} FROM {table} ORDER BY {by}").fetchall()
        a, b = COLUMNS[table][:2]
        put, values = ("?", (value,)) if not str(value).startswith("CAST") else (value, ())
        try:
            if row < 0:
                connection.execute(f"UPDATE {table} SET {column} = {put}", values)
            elif number:
                key = keys[row % number]
                connection.execute(f"UPDATE {table} SET {column} = {put} WHERE {a} IS ? AND {b} IS ?", (*values, *key))
        except sqlite3.IntegrityError:
            pass  # a number or a name that is taken, or no rowid
        connection.commit()
    redefine(statements[table])
    if honest:
        rehash(root)


def rehash(root: Path) -> None:
    """Digests that fit the rows, as whoever forges a catalog would make them."""
    try:
        store = Store(root)
        numbers = [one.generation for one in store.catalog.generations()]
        with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
            for number in numbers:
                digest = store.catalog.digest(number)
                connection.execute("UPDATE generations SET digest = ? WHERE generation = ?", (digest, number))
                connection.commit()
        store.close()
    except NeuralDBError:
        pass  # no digest fits these


def leaf_of(root: Path, table: str, column: str, row: int, path: int, leaf: str) -> str | None:
    """The JSON text in a place with one of its values replaced; None where there is no JSON."""
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        by = ", ".join(COLUMNS[table][:2])
        texts = [text for (text,) in connection.execute(f"SELECT {column} FROM {table} ORDER BY {by}")]
    try:
        value = json.loads(texts[row % len(texts)])
    except (ValueError, TypeError, ZeroDivisionError):
        return None
    places: list[tuple[Any, Any]] = []

    def walk(one: Any) -> None:
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for name, inner in items:
            places.append((one, name))
            walk(inner)

    walk(value)
    if not places:
        return leaf
    holder, name = places[path % len(places)]
    holder[name] = "@leaf@"
    return json.dumps(value).replace('"@leaf@"', leaf)


def use(root: Path) -> None:
    """What people do with a database, reading first. Anything but a NeuralDBError is raised."""
    out = root.parent / "out"

    def opened(generation: int | None = None) -> None:
        with NeuralDB.open(root, generation=generation) as db:
            db.info()
            len(db), repr(db), db.history(), db.guard
            list(db.snapshot.subject_names()), db.snapshot.floors, db.snapshot.live

    def facts(**where: Any) -> Callable[[], None]:
        def run() -> None:
            with NeuralDB.open(root) as db:
                for fact in db.facts(**where):
                    json.dumps(fact.to_dict(), allow_nan=False)
                    db.key_norms(fact), db.snapshot.fact_ids(fact.entry), db.snapshot.names(fact.entry)

        return run

    def searched(kind: str) -> Callable[[], None]:
        def run() -> None:
            with NeuralDB.open(root) as db:
                found = db.matcher(kind).match(np.ones((2, D1), np.float32))
                db.snapshot.residuals(np.asarray(found.entry_ids)[np.asarray(found.fired)])

        return run

    def read(do: Callable[[Store], Any], mode: str = "r") -> Callable[[], None]:
        def run() -> None:
            with closing(Store(root, mode)) as store:
                do(store)

        return run

    def merged(store: Store) -> None:
        merge.merge([store, Store(other)], out=out / "merged", on_conflict="first")[0].close()

    def merged_into(store: Store) -> None:
        merge.merge([Store(other)], into=store, on_conflict="last")

    other = root.parent / "other"
    lima = Fact("Lima", "In {} they speak", "Greek")
    steps: list[Callable[[], Any]] = [
        opened, lambda: opened(1), facts(), facts(subject="Lima"), facts(contains="i"), facts(source="a"),
        facts(waiting=True), facts(failed=True), facts(at=1), searched("auto"), searched("ivf"),
        read(lambda store: integrity.check(store)), read(lambda store: integrity.check(store, deep=True)),
        read(lambda store: export(store, io.BytesIO())), read(lambda store: export(store, io.BytesIO(), "safetensors")),
        read(lambda store: save(store, out / "saved")), read(merged),
        read(lambda store: changes.add(store, EDITOR, [lima, Fact("Rio", "{} is in", "Rome")]), "rw"),
        read(lambda store: changes.solve(store, EDITOR), "rw"), read(merged_into, "rw"),
        read(lambda store: changes.remove(store, list(store.catalog.facts(store.generation, subject="Lima"))), "rw"),
        read(lambda store: rollback(store, 1), "rw"), read(compact, "rw"), lambda: integrity.repair(root),
    ]  # fmt: skip
    for step in steps:
        try:
            step()
        except NeuralDBError as error:
            assert "\n" not in str(error), str(error)


@pytest.mark.filterwarnings("ignore:.*neuraldb verify")
@settings(max_examples=FORGERIES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    place=some.sampled_from(PLACES),
    row=some.integers(-1, 12),
    value=some.sampled_from(sorted(VALUES)) | some.tuples(some.integers(0, 20), some.sampled_from(LEAVES)),
    honest=some.booleans(),
)
def test_forged_catalogs(
    original: Path, place: tuple[str, str], row: int, value: str | tuple[int, str], honest: bool
) -> None:
    check(original, place, row, value, honest)


def check(original: Path, place: tuple[str, str], row: int, value: str | tuple[int, str], honest: bool) -> None:
    with tempfile.TemporaryDirectory(dir=original.parent) as name:
        root = Path(shutil.copytree(original, Path(name) / "db"))
        shutil.copytree(original, Path(name) / "other")
        (Path(name) / "out").mkdir()
        given = VALUES[value] if isinstance(value, str) else leaf_of(root, *place, row, *value)
        forge(root, *place, row, given, honest)
        use(root)
