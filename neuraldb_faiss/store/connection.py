"""The connection to a catalog: statements, transactions, and errors that name the file."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import files, schema, sqlite_files
from neuraldb_faiss.store.records import check_columns

CURE = "`neuraldb verify --deep` lists all that is wrong"
_ROWS = 500  # streamed at once
_MAX_VALUE = 1 << 29  # bytes of one text in any column or parameter; SQLite itself would take 1 GB
# What SQLite says of a text that is no UTF-8, of JSON that it cannot take apart, of a value of another type.
_UNREADABLE = re.compile("Could not decode|malformed JSON|string or blob too big|cannot store")


class Connection:
    """Runs statements on the catalog of the folder `root`. Threads may share one (its calls are serialised).

    Whatever is read is checked for its type and size by the name of its column: the file may come from a stranger.

    Raises:
        StoreError, FormatError, CorruptError: as `schema.connect`, wherever SQLite fails, and CorruptError for a row
            that holds what it cannot hold.
    """

    def __init__(self, root: Path, *, write: bool = False, create: bool = False) -> None:
        self.root = root
        self.path = root / schema.NAME
        self._lock = threading.RLock()
        self._connection, self.place = schema.connect(root, write=write, create=create)
        self._connection.row_factory = sqlite3.Row
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE)

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

    def all(self, sql: str, values: Any = ()) -> list[sqlite3.Row]:
        with self._lock, self._naming():
            self._check_beside()
            cursor = self._connection.execute(sql, values)
            rows = cursor.fetchall()
        if rows:
            try:
                check_columns([column[0] for column in cursor.description], rows)
            except CorruptError as error:
                raise CorruptError(f"{self.path}: {error} ({CURE})") from None
        return rows

    def _check_beside(self) -> None:
        if not self._connection.in_transaction:
            sqlite_files.check_beside(self.path)

    def one(self, sql: str, values: Any = ()) -> Any:
        """The first column of the first row, or None."""
        rows = self.all(sql, values)
        return rows[0][0] if rows else None

    def run(self, sql: str, values: Any = ()) -> int:
        """Execute inside a transaction; returns the number of rows changed."""
        with self._naming():
            return self._connection.execute(sql, values).rowcount

    def many(self, sql: str, rows: Iterable[Any]) -> None:
        with self._naming():
            self._connection.executemany(sql, rows)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Errors of a statement become ours, and name the file."""
        try:
            yield
        except sqlite3.Error as error:
            if _UNREADABLE.match(str(error)):
                raise CorruptError(f"{self.path}: {' '.join(str(error).split())[:200]} ({CURE})") from error
            raise schema.as_store_error(error, self.path) from error
        except UnicodeEncodeError:
            raise StoreError(f"{self.path}: half of a surrogate pair can be neither kept nor found") from None
        except OverflowError:
            raise StoreError(f"{self.path}: a number of more than 64 bits can be neither kept nor found") from None

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

    def stream(self, sql: str, values: Any = ()) -> Generator[tuple[Any, ...]]:
        """Rows as they are, unchecked, a block at a time."""
        with self._lock, self._naming():
            self._check_beside()
            cursor = self._connection.cursor()
            cursor.row_factory = None
            rows = cursor.execute(sql, values).fetchmany(_ROWS)
        try:
            while rows:
                yield from rows
                with self._lock, self._naming():
                    rows = cursor.fetchmany(_ROWS)
        finally:
            with suppress(sqlite3.Error):  # the connection may be closed by now
                cursor.close()
