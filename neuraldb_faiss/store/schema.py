"""The catalog's tables, and how a connection to it is opened.

A catalog may come from a stranger: a connection trusts no schema but this one, to the letter.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from neuraldb_faiss.errors import CorruptError, FormatError, StoreError, did_you_mean
from neuraldb_faiss.store import files, sqlite_files
from neuraldb_faiss.store.files import Place

FORMAT = 1
APPLICATION = 0x4E444246  # "NDBF"
NAME = "catalog.sqlite"

# `made` is the generation that made a row (NULL: staged, invisible), `ended` the one that ended it.
TABLES = {
    "generations": """CREATE TABLE generations (
    generation INTEGER PRIMARY KEY, time TEXT NOT NULL, command TEXT NOT NULL,
    added INTEGER NOT NULL, updated INTEGER NOT NULL, removed INTEGER NOT NULL,
    facts INTEGER NOT NULL, entries INTEGER NOT NULL, digest TEXT NOT NULL) STRICT""",
    "settings": """CREATE TABLE settings (
    name TEXT NOT NULL, made INTEGER NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, made)) STRICT""",
    "segments": """CREATE TABLE segments (
    segment INTEGER PRIMARY KEY, made INTEGER, entries INTEGER NOT NULL, keys INTEGER NOT NULL,
    prefixes TEXT NOT NULL, files TEXT NOT NULL) STRICT""",
    "facts": """CREATE TABLE facts (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, identity TEXT NOT NULL, subject TEXT NOT NULL,
    subject_key TEXT NOT NULL, prompt TEXT NOT NULL, target TEXT NOT NULL, target_true TEXT, relation TEXT,
    sources TEXT NOT NULL, metadata TEXT NOT NULL, entry INTEGER NOT NULL, key_id TEXT NOT NULL,
    time TEXT NOT NULL, residual TEXT NOT NULL, loss REAL, nll REAL, probability REAL, took INTEGER,
    made INTEGER, ended INTEGER) STRICT""",
    "entry_states": """CREATE TABLE entry_states (
    entry INTEGER NOT NULL, made INTEGER NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (entry, made)) STRICT, WITHOUT ROWID""",
    "counters": "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    "staging": "CREATE TABLE staging (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    "facts_id": "CREATE INDEX facts_id ON facts (id)",
    "facts_identity": "CREATE INDEX facts_identity ON facts (identity)",
    "facts_subject": "CREATE INDEX facts_subject ON facts (subject_key)",
    "facts_entry": "CREATE INDEX facts_entry ON facts (entry)",
    "facts_key": "CREATE INDEX facts_key ON facts (key_id)",
    "facts_made": "CREATE INDEX facts_made ON facts (made)",
    "facts_ended": "CREATE INDEX facts_ended ON facts (ended) WHERE ended IS NOT NULL",
}


def _missing(root: Path) -> str:
    """Why there is no database at `root`, and which ones could be meant: those inside, or beside under a like name."""
    inside = _databases_in(root)
    if inside:
        more = f" and {len(inside) - _NAMED} more" if len(inside) > _NAMED else ""
        return f"it holds the databases {', '.join(inside[:_NAMED])}{more}: name one of them"
    if root.exists():
        return "the folder is no database, or a half-copied one"
    return f"there is no such folder.{did_you_mean(str(root), _databases_in(root.parent))}"


def _databases_in(folder: Path) -> list[str]:
    try:
        return sorted(str(one) for one in folder.iterdir() if os.path.lexists(one / NAME))
    except OSError:
        return []


def connect(
    root: Path, *, write: bool, create: bool = False, busy_seconds: float = 30.0
) -> tuple[sqlite3.Connection, Place]:
    """Open the catalog of the database folder `root`; also tells where that file lies (see `files.place_of`).

    Raises:
        StoreError: there is no database at `root`, or it cannot be opened.
        FormatError: it is no catalog, or one of a newer format.
        CorruptError: it holds anything but our tables, or SQLite's own files beside it are not to be trusted.
    """
    path = root / NAME
    for _ in range(_TRIES):
        if not create and not os.path.lexists(path):
            raise StoreError(f"no database at {root}: {_missing(root)}")
        try:
            before = files.place_of(path)
            sqlite_files.check_files(path, write=write or create)
            connection = _open(path, create=create, busy_seconds=busy_seconds)
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        place = files.place_of(path)
        # SQLite has opened the file by now. The same one before and after: it is that.
        if place is not None and before in (None, place):
            break
        connection.close()
    else:
        raise StoreError(f"{path} is being replaced again and again: try again when that has ended")
    try:
        if not (write or create):
            connection.execute("PRAGMA query_only = ON")
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        sqlite_files.refuse_wal(path, mode)
        if create and not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            _create(connection)
        _check(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise as_store_error(error, path) from error
    except BaseException:
        connection.close()
        raise
    return connection, place


_TRIES = 3  # a file may become another one while it is opened: in a container's overlay, by opening it for writing
_NAMED = 5  # databases that an error names


def _open(path: Path, *, create: bool, busy_seconds: float) -> sqlite3.Connection:
    # A reader too asks for "rw" (SQLite falls back where it may not write): only so can it roll back the journal that a
    # killed writer left. It changes nothing else, for it is made `query_only`.
    mode = "rwc" if create else "rw"
    try:
        # The catalog object serialises its use, so threads may share the connection.
        return sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=busy_seconds,
            isolation_level=None, check_same_thread=False,
        )  # fmt: skip
    except sqlite3.Error as error:
        raise as_store_error(error, path) from error


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {FORMAT}")
    for statement in TABLES.values():
        connection.execute(statement)
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA synchronous = EXTRA")  # the journal's removal is durable too
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise FormatError(f"{path} is not a catalog of this program")
    if version != FORMAT:
        raise FormatError(
            f"{path} has format {version}, this version reads format {FORMAT}: install a newer neuraldb-faiss"
        )
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_auto%'"))
    if found != TABLES:
        odd = sorted(set(found) ^ set(TABLES)) or sorted(n for n in TABLES if found[n] != TABLES[n])
        raise CorruptError(f"{path} does not hold the tables of format {FORMAT} (look at {', '.join(odd)})")


def as_store_error(error: sqlite3.Error, path: Path) -> StoreError:
    """The error of ours that says what SQLite's means."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return CorruptError(f"{path} is damaged ({error}): restore it from a copy")
    if name == "SQLITE_READONLY_DBMOVED":
        return StoreError(f"{path} was moved or replaced since it was opened: nothing was written; open it again")
    if name.startswith(("SQLITE_READONLY", "SQLITE_PERM")):
        return StoreError(f"{path} cannot be written ({error}): give yourself write access, or work on a copy")
    if name.startswith("SQLITE_FULL"):
        return StoreError(f"{path}: the disk is full; free some space and run the same command again")
    if name.startswith("SQLITE_BUSY"):
        return StoreError(f"{path} is locked by another program; try again when it has ended")
    if name.startswith("SQLITE_CANTOPEN"):
        return StoreError(
            f"{path} cannot be opened ({error}): look at who may read it; where another program switched it to"
            " write-ahead logging, it must be able to write in the folder"
        )
    if isinstance(error, sqlite3.ProgrammingError) and "closed database" in str(error):
        return StoreError(
            f"the database {path.parent} was closed: open it again, with NeuralDB.open({str(path.parent)!r})"
        )
    return StoreError(f"{path}: {error}")
