"""What SQLite would act on beside a catalog: forged journals, write-ahead logs, links. Nothing outside is touched."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from pathlib import Path

import pytest

from helpers.fake_editor import FakeEditor
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, merge_into, verify

EDITOR = FakeEditor()
MAGIC = bytes.fromhex("d9d505f920a163d7")
PAGE = 4096


@pytest.fixture
def root(quick_path: Path) -> Path:
    changes.build([Fact("Paris", "{} is in", "Rome")], EDITOR, quick_path / "db").close()
    return quick_path / "db"


@pytest.fixture
def victim(quick_path: Path) -> Path:
    path = quick_path / "victim.txt"
    path.write_text("precious")
    return path


def forge_journal(catalog: Path, victim: Path) -> None:
    """A hot journal of no pages that names `victim` as its super-journal: once played back, SQLite deletes that."""
    header = MAGIC + struct.pack(">IIIII", 0, 0, catalog.stat().st_size // PAGE, 512, PAGE)
    name = str(victim).encode()
    tail = struct.pack(">I", 0x40000000 // PAGE + 1) + name + struct.pack(">II", len(name), sum(name)) + MAGIC
    Path(f"{catalog}-journal").write_bytes(header.ljust(512, b"\0") + tail)


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir() if path.is_file()}


def assert_refused(root: Path, match: str) -> None:
    """By readers and writers, and nothing in the folder changes."""
    before = content(root)
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match=match):
            Store(root, mode)
    assert content(root) == before


def test_a_forged_journal_works_on_plain_sqlite(root: Path, victim: Path) -> None:
    """Else the tests below prove nothing."""
    forge_journal(root / "catalog.sqlite", victim)
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute("SELECT * FROM facts")
    connection.close()
    assert not victim.exists()


def test_a_journal_that_names_another_file_is_refused(root: Path, victim: Path) -> None:
    forge_journal(root / "catalog.sqlite", victim)
    assert_refused(root, r"catalog\.sqlite-journal names another file")
    assert victim.read_text() == "precious"


def test_a_build_into_a_folder_with_such_a_journal_is_refused(quick_path: Path, victim: Path) -> None:
    (quick_path / "new").mkdir()
    catalog = quick_path / "new" / "catalog.sqlite"
    catalog.write_bytes(b"")
    forge_journal(catalog, victim)
    with pytest.raises(StoreError):
        changes.build([Fact("Paris", "{} is in", "Rome")], EDITOR, quick_path / "new")
    assert victim.read_text() == "precious"


def test_a_journal_that_comes_later_is_refused_by_writer_and_merge(root: Path, quick_path: Path, victim: Path) -> None:
    other = changes.build([Fact("Oslo", "{} is in", "Rome")], EDITOR, quick_path / "other")
    store = Store(root, "rw")
    reader = Store(root)
    forge_journal(root / "catalog.sqlite", victim)
    with pytest.raises(CorruptError, match="names another file"):
        changes.add(store, EDITOR, [Fact("Lima", "{} is in", "Rome")])
    with pytest.raises(CorruptError, match="names another file"):
        reader.snapshot()
    (root / "catalog.sqlite-journal").unlink()
    forge_journal(other.root / "catalog.sqlite", victim)
    with pytest.raises(CorruptError, match="names another file"):
        merge_into(store, [other])
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
def test_links_are_refused(root: Path, victim: Path, suffix: str) -> None:
    path = root / f"catalog.sqlite{suffix}"
    if not suffix:
        shutil.move(path, victim)
    path.symlink_to(victim)
    before = victim.read_bytes()
    assert_refused(root, "link, which may lead outside")
    assert victim.read_bytes() == before


def test_a_link_inside_the_folder_is_refused_too(root: Path, victim: Path) -> None:
    """SQLite would look for the journal beside what the link leads to."""
    (root / "catalog.sqlite").rename(root / "real")
    (root / "catalog.sqlite").symlink_to("real")
    forge_journal(root / "real", victim)
    assert_refused(root, "link")
    assert victim.exists()


def test_a_dangling_link_is_not_built_through(quick_path: Path) -> None:
    (quick_path / "new").mkdir()
    (quick_path / "new" / "catalog.sqlite").symlink_to(quick_path / "elsewhere.sqlite")
    with pytest.raises(CorruptError, match="link"):
        changes.build([Fact("Paris", "{} is in", "Rome")], EDITOR, quick_path / "new")
    assert not (quick_path / "elsewhere.sqlite").exists()


@pytest.mark.parametrize("suffix", ["", "-journal", "-shm"])
@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_refused(root: Path, suffix: str, kind: str) -> None:
    path = root / f"catalog.sqlite{suffix}"
    path.unlink(missing_ok=True)
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(CorruptError, match="no plain file"):
        Store(root)


def test_a_journal_with_a_second_name_is_refused(root: Path, victim: Path) -> None:
    """A writer would overwrite the other name's content."""
    victim.write_bytes(b"\0" * 600)
    os.link(victim, root / "catalog.sqlite-journal")
    assert_refused(root, "second name")
    assert victim.read_bytes() == b"\0" * 600


def test_a_catalog_with_a_second_name_is_only_read(root: Path, quick_path: Path) -> None:
    """As `cp -al` makes backups: what is written here would change there."""
    os.link(root / "catalog.sqlite", quick_path / "backup.sqlite")
    Store(root).close()
    with pytest.raises(StoreError, match="second name"):
        Store(root, "rw")
    (root / "catalog.sqlite-journal").write_bytes(b"")
    with pytest.raises(StoreError, match="second name"):
        Store(root)


def test_a_write_ahead_log_is_refused(root: Path) -> None:
    (root / "catalog.sqlite-wal").write_bytes(b"")
    assert_refused(root, r"catalog\.sqlite-wal is a write-ahead log.*PRAGMA")


def test_a_catalog_in_write_ahead_mode_is_refused(root: Path) -> None:
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert (root / "catalog.sqlite").read_bytes()[18:20] == b"\2\2"
    assert_refused(root, "switched to write-ahead logging by another program.*PRAGMA journal_mode=DELETE")
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute("PRAGMA journal_mode = DELETE")  # what the message says
    connection.close()
    assert verify(Store(root), deep=True) == []


def test_a_catalog_in_write_ahead_mode_and_in_use_is_refused(root: Path) -> None:
    connection = sqlite3.connect(root / "catalog.sqlite")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(CorruptError, match="write-ahead log"):
        Store(root)
    connection.close()
