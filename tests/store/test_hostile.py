"""Databases from strangers, and damaged ones: refused with an error of ours that names the file, and never run."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.fake_editor import FakeEditor
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import CorruptError, FormatError, LockedError, StoreError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, files, verify
from neuraldb_faiss.store.lock import writer_lock
from neuraldb_faiss.store.segments import ARRAYS

EDITOR = FakeEditor()
SEGMENT = Path("segments") / "00000001"


@pytest.fixture
def root(quick_path: Path) -> Path:
    facts = [Fact(subject, "{} is in", "Rome", source="test") for subject in ("Paris", "Oslo", "Lima")]
    store = changes.build(facts, EDITOR, quick_path / "db")
    changes.add(store, EDITOR, [Fact("Quito", "{} is in", "Kyiv")])
    store.close()
    return quick_path / "db"


def sql(root: Path, *statements: str) -> None:
    connection = sqlite3.connect(root / "catalog.sqlite")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def assert_refused(root: Path, name: str) -> None:
    """Neither a snapshot nor a verify takes the array; both say which."""
    store = Store(root)
    with pytest.raises(StoreError, match=name):
        store.snapshot()
    for deep in (False, True):
        assert any(name in problem.file + problem.what for problem in verify(store, deep=deep))
    store.close()


# ---- arrays


def test_a_symlink_out_of_the_folder_is_not_followed(root: Path) -> None:
    path = root / SEGMENT / "residuals.npy"
    outside = root.parent / "secret.npy"
    shutil.move(path, outside)
    path.symlink_to(outside)
    assert_refused(root, "residuals.npy")


def test_a_segment_that_is_a_symlink_is_not_followed(root: Path) -> None:
    shutil.move(root / SEGMENT, root.parent / "elsewhere")
    (root / SEGMENT).symlink_to(root.parent / "elsewhere")
    assert_refused(root, "00000001")


def test_a_catalog_that_is_a_symlink_is_not_followed(root: Path) -> None:
    shutil.move(root / "catalog.sqlite", root.parent / "catalog.sqlite")
    (root / "catalog.sqlite").symlink_to(root.parent / "catalog.sqlite")
    with pytest.raises(CorruptError, match="outside"):
        Store(root)


def pickled(path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(path.parent.parent.parent.parent / "harm"),)

    np.save(path, np.array([Harm()], object), allow_pickle=True)


def wrong_shape(path: Path) -> None:
    array = np.load(path)
    np.save(path, array.reshape(1, -1))


def wrong_type(path: Path) -> None:
    np.save(path, np.load(path).astype("<f8"))


def huge_shape(path: Path) -> None:
    data = path.read_bytes()
    header = b"{'descr': '<f2', 'fortran_order': False, 'shape': (999999999999, 8), }"
    path.write_bytes(data[:10] + header.ljust(117) + b"\n" + data[128:])


def long_header(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extended(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = [pickled, wrong_shape, wrong_type, huge_shape, long_header, truncated, extended, emptied, removed, a_folder]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["keys.npy", "residuals.npy"])
def test_a_damaged_array_is_refused(root: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(root / SEGMENT / name)
    assert_refused(root, name)
    assert not (root.parent / "harm").exists()


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("where", ["header", "first", "last"])
def test_a_flipped_bit_in_an_array_is_found(root: Path, name: str, where: str) -> None:
    path = root / SEGMENT / f"{name}.npy"
    data = bytearray(path.read_bytes())
    data[{"header": 60, "first": 128, "last": -1}[where]] ^= 4
    path.write_bytes(data)
    problems = verify(Store(root), deep=True)
    assert any(f"{name}.npy" in problem.file + problem.what and problem.segment == 1 for problem in problems)


# ---- catalog


@pytest.mark.parametrize("statement", [
    "CREATE TRIGGER t AFTER INSERT ON facts BEGIN DELETE FROM facts; END",
    "CREATE VIEW v AS SELECT * FROM facts",
    "CREATE TABLE extra (x)",
    "CREATE INDEX extra ON facts (target)",
    "ALTER TABLE facts ADD COLUMN extra TEXT",
    "DROP INDEX facts_made",
    "CREATE VIRTUAL TABLE extra USING fts5(x)",
])  # fmt: skip
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_another_schema_is_refused(root: Path, statement: str, mode: str) -> None:
    try:
        sql(root, statement)
    except sqlite3.OperationalError as error:
        pytest.skip(str(error))
    with pytest.raises(CorruptError, match="catalog.sqlite"):
        Store(root, mode)


def test_another_application_is_refused(root: Path) -> None:
    sql(root, "PRAGMA application_id = 7")
    with pytest.raises(FormatError, match="catalog.sqlite"):
        Store(root)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4080])
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_what_is_no_catalog_is_refused(root: Path, content: bytes, mode: str) -> None:
    (root / "catalog.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match="catalog.sqlite"):
        Store(root, mode)


def test_a_missing_catalog_is_told(root: Path) -> None:
    (root / "catalog.sqlite").unlink()
    with pytest.raises(StoreError, match="no database"):
        Store(root)


@pytest.mark.parametrize("statement", [
    "UPDATE facts SET target = 'Romf' WHERE row = 1",
    "UPDATE facts SET ended = 2 WHERE row = 1",
    "UPDATE facts SET made = 2 WHERE row = 1",
    "UPDATE facts SET entry = 1 WHERE row = 1",
    "UPDATE facts SET metadata = '{' WHERE row = 1",
    "DELETE FROM facts WHERE row = 1",
    "INSERT INTO entry_states VALUES (1, 1, 'dead')",
    "UPDATE settings SET value = '0.7' WHERE name = 'gamma'",
    "UPDATE generations SET time = '2001' WHERE generation = 1",
    "UPDATE generations SET facts = 5 WHERE generation = 2",
    "UPDATE segments SET files = '{}' WHERE segment = 1",
])  # fmt: skip
def test_a_changed_row_is_found(root: Path, statement: str) -> None:
    sql(root, statement)
    problems = verify(Store(root), deep=True)
    assert any("catalog.sqlite" in problem.file for problem in problems)


@pytest.mark.parametrize(("statement", "named"), [
    ("UPDATE facts SET metadata = '{' WHERE row = 2", "row 2 of table facts"),
    ("UPDATE facts SET metadata = '{' WHERE row = 2; UPDATE facts SET ended = 2 WHERE row = 2", "row 2 of table facts"),
    ("UPDATE facts SET sources = '7' WHERE row = 3", "row 3 of table facts: it is no list of strings"),
    ("UPDATE facts SET prompt = 'nothing' WHERE row = 1", "row 1 of table facts: subject 'Paris' is not in the prompt"),
    ("UPDATE facts SET subject_key = 'Rome' WHERE row = 1", "row 1 of table facts: its identity or the key"),
    ("UPDATE facts SET ended = 7 WHERE row = 1", "row 1 of table facts: it is of a generation after the newest"),
    ("INSERT INTO settings VALUES ('other', 1, '[1e999]')", "table settings: a number too large"),
    ("UPDATE segments SET files = '{' WHERE segment = 1", "row 1 of table segments"),
    ("UPDATE segments SET prefixes = '[7]' WHERE segment = 1", "row 1 of table segments"),
    ("INSERT INTO entry_states VALUES (1, 1, 'odd')", "table entry_states: state is 'odd'"),
    ("UPDATE counters SET value = 1 WHERE name = 'entries'", "counter entries says 1, but 3 is in use"),
    ("DELETE FROM counters", "counter segments says 0"),
    ("UPDATE generations SET added = -1", "row 1 of table generations: added is -1"),
])  # fmt: skip
def test_a_row_that_cannot_be_read_is_named_even_where_digests_fit(root: Path, statement: str, named: str) -> None:
    sql(root, *statement.split("; "))
    store = Store(root)
    for generation in (1, 2):
        try:
            digest = store.catalog.digest(generation)
        except StoreError:  # no digest fits what cannot be read
            continue
        sql(root, f"UPDATE generations SET digest = '{digest}' WHERE generation = {generation}")
    problems = verify(store, deep=True)
    assert any(named in problem.what and problem.file == "catalog.sqlite" for problem in problems), problems
    store.close()


def test_many_bad_rows_are_counted(quick_path: Path) -> None:
    store = changes.build([Fact(f"City {n}", "{} is in", "Rome") for n in range(30)], EDITOR, quick_path / "db")
    sql(quick_path / "db", "UPDATE facts SET metadata = '{'")
    what = [problem.what for problem in verify(store, deep=True)]
    assert sum("row" in one and "of table facts" in one for one in what) == 20
    assert "table facts: 10 more rows that cannot be read" in what


def test_a_missing_generation_is_told(root: Path) -> None:
    sql(root, "DELETE FROM generations WHERE generation = 1")
    with NeuralDB.open(root, generation=1) as db, pytest.raises(CorruptError, match="generation 1 is missing"):
        len(db)


@pytest.mark.parametrize(
    "where", [{"contains": "\udc80"}, {"subject": "\ud800"}, {"ids": ["\ud800"]}, {"entry": 2**70}]
)
def test_what_no_catalog_can_hold_is_not_found(root: Path, where: dict[str, object]) -> None:
    store = Store(root)
    try:
        assert list(store.catalog.facts(2, **where)) == []
    except StoreError as error:
        assert "neither kept nor found" in str(error)


@pytest.mark.parametrize("statement", [
    "UPDATE segments SET files = 'x' WHERE segment = 1",
    "UPDATE segments SET files = '{\"../../secret\": 1}' WHERE segment = 1",
    "UPDATE segments SET entries = -1 WHERE segment = 1",
    "UPDATE segments SET entries = 1 << 62, keys = 1 << 62 WHERE segment = 1",
    "UPDATE segments SET prefixes = '7' WHERE segment = 1",
    "UPDATE segments SET segment = -5 WHERE segment = 1",
    "UPDATE settings SET value = '\"x\"' WHERE name = 'd1'",
    "UPDATE settings SET value = '-3' WHERE name = 'd2'",
    "UPDATE settings SET value = '{' WHERE name = 'd1'",
    "DELETE FROM settings",
    "DELETE FROM generations WHERE generation = 1",
    "UPDATE settings SET value = '99' WHERE name = 'history_start'",
    "UPDATE settings SET value = '\"x\"' WHERE name = 'history_start'",
])  # fmt: skip
def test_hostile_rows_raise_only_errors_of_ours(root: Path, statement: str) -> None:
    sql(root, statement)
    store = Store(root)
    with contextlib.suppress(StoreError):
        store.snapshot()
    assert verify(store, deep=True)


@pytest.mark.parametrize("number", range(8))
def test_flipped_bytes_of_the_catalog(root: Path, number: int) -> None:
    """Anywhere in a page with rows: refused at opening, or told by verify where the byte counts for anything."""
    path = root / "catalog.sqlite"
    clean = path.read_bytes()
    for word in (b"Oslo is in", b"Oslo", b"Rome", b"fake", b"residuals.npy", b"build"):
        at = clean.find(word)
        if at < 0:
            continue
        data = bytearray(clean)
        data[at + number % len(word)] ^= 1 << number
        path.write_bytes(data)
        try:
            store = Store(root)
        except StoreError as error:
            assert "catalog.sqlite" in str(error)
            continue
        assert any("catalog.sqlite" in p.file for p in verify(store, deep=True)), (word, at)
        store.close()


# ---- texts


NASTY = [
    "'; DROP TABLE facts; --", '" OR 1=1 --', "%", "_", "\\", "a\\%b", "Robert'); DELETE FROM facts;--", ":g", "?1",
    "x' UNION SELECT sql FROM sqlite_master --", "[1, 2]", '"]', "$.x", "\u202e\u0301\U0001f600",
]  # fmt: skip


def test_sql_in_texts_is_text(quick_path: Path) -> None:
    facts = [
        Fact(text, "The {} is", text, id=text, source=text, target_true=text, relation=text, metadata={text: text})
        for text in NASTY
    ]
    store = changes.build(facts, EDITOR, quick_path / "db")
    for fact in facts:
        text = fact.subject
        for found in (
            list(store.catalog.facts(1, subject=text)),
            list(store.catalog.facts(1, ids=[text])),
            list(store.catalog.facts(1, source=text)),
        ):
            assert [one.fact() for one in found] == [fact]
        assert fact.identity in {one.identity for one in store.catalog.facts(1, contains=text)}
        expected = {one.identity for one in facts if text in one.subject or text in one.prompt}
        assert {one.identity for one in store.catalog.facts(1, contains=text)} == expected
        assert list(store.catalog.facts(1, key_ids=[text])) == []
    assert store.catalog.count_facts(1) == len(facts)
    changes.remove(store, list(store.catalog.facts(1, ids=[NASTY[0]])), command=NASTY[0])
    assert store.catalog.count_facts(2) == len(facts) - 1
    assert verify(store, deep=True) == []


# ---- the header reader


def check_map(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        found = files.open_array(path, "<f2", (3, 2))
    except StoreError as error:
        assert str(path) in str(error)
    else:
        assert found.dtype == "<f2" and found.shape == (3, 2) and found.tobytes() == data[-12:]


GOOD = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f2', 'fortran_order': False, 'shape': (3, 2), }".ljust(117) + b"\n"


@settings(max_examples=150, deadline=None)
@given(
    data=some.binary(max_size=600)
    | some.binary(max_size=300).map(lambda tail: b"\x93NUMPY" + tail)
    | some.binary(max_size=300).map(lambda tail: b"\x93NUMPY\x01\x00" + len(tail).to_bytes(2, "little") + tail)
    | some.text(max_size=117).map(
        lambda text: GOOD[:10] + text.encode("latin1", "replace")[:117].ljust(117) + b"\n" + bytes(12)
    )
)
def test_fuzzed_headers(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    check_map(tmp_path_factory.getbasetemp() / "fuzz.npy", data)


@settings(max_examples=150, deadline=None)
@given(at=some.integers(0, 139), value=some.integers(0, 255), cut=some.none() | some.integers(0, 140))
def test_fuzzed_bytes_of_a_good_file(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int | None
) -> None:
    data = bytearray(GOOD + bytes(range(12)))
    data[at] = value
    check_map(tmp_path_factory.getbasetemp() / "fuzz.npy", bytes(data)[:cut])


def test_a_header_that_another_program_spells_otherwise_is_read(tmp_path: Path) -> None:
    spelled = GOOD.replace(b"'fortran_order': False, 'shape': (3, 2), ", b"'shape':(3,2),'fortran_order':False")
    path = tmp_path / "spelled.npy"
    path.write_bytes(spelled[:-1].ljust(len(GOOD) - 1) + b"\n" + bytes(range(12)))
    assert path.read_bytes()[: len(GOOD)] != files.header_of("<f2", (3, 2)) == GOOD
    header, found = files.open_whole(path, "<f2", (3, 2))
    assert found.tobytes() == bytes(range(12)) and header == path.read_bytes()[: len(GOOD)]


# ---- JSON beside the catalog


HOSTILE_JSON = [
    "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 6000, '{"n_keys": ' + "9" * 6000 + "}", "null", "[]", "7",
    '{"files": [], "n_keys": 1e999, "nlist": NaN}',
    '{"pid": {}, "user": [], "host": 1, "command": null, "since": "\\ud800"}',
    "\\", "", '{"n_keys": 8, "nlist": -1, "files": {"ivf.centroids.npy": 1, "ivf.lists.npy": {}}}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_hostile_notes_of_an_index_are_made_anew(root: Path, text: str) -> None:
    with NeuralDB.open(root) as db:
        expected = db.matcher("ivf").match(np.eye(12, dtype=np.float32)[:3])
        for name in ("ivf.json", "subjects.json"):
            (root / "search" / name).write_text(text)
        found = db.matcher("ivf").match(np.eye(12, dtype=np.float32)[:3])
        assert np.array_equal(found.entry_ids, expected.entry_ids)
        (root / "search" / "ivf.json").write_text(text)
        assert any("ivf.json" in problem.file for problem in db.verify(deep=True))


@pytest.mark.parametrize("text", HOSTILE_JSON, ids=range(len(HOSTILE_JSON)))
def test_a_hostile_note_of_the_writer_is_not_told(root: Path, text: str) -> None:
    with writer_lock(root, "first", wait=0):
        (root / "writer.json").write_text(text)
        with pytest.raises(LockedError, match="is being written by"), writer_lock(root, "second", wait=0):
            pass
