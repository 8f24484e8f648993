"""The catalog's file and what SQLite keeps beside it, checked before SQLite acts on them.

SQLite trusts a journal that it finds: it writes what that says into the catalog, and deletes the file that it names as
its super-journal (the record of a transaction over several databases, which this program never makes).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from neuraldb_faiss.errors import CorruptError, StoreError

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # begins a journal; ends one that names a super-journal
_SHORTEST_NAMED = 16  # bytes: a shorter journal names none


def check_files(path: Path, *, write: bool) -> None:
    """Raises unless SQLite may be let near the catalog at `path` (which may be missing) and what lies beside it.

    Raises:
        CorruptError: a link, something that is no file, a journal that names another file, a write-ahead log.
        StoreError: the catalog has a second name, where a change would be seen too; the journal cannot be read.
    """
    catalog = _plain(str(path))
    journal = check_beside(path)
    if catalog is not None and catalog.st_nlink > 1 and (write or journal):
        raise StoreError(
            f"{path} has a second name (a hard link), and would change there too: copy the folder (`cp -r`) and work on"
            " the copy"
        )


def check_beside(path: Path) -> bool:
    """The part of `check_files` that looks at SQLite's own files, which can come while the catalog is open: SQLite acts
    on them whenever it begins to read. Returns whether there is a journal."""
    # Asked before every statement: names are put together as texts, for a Path costs more than looking.
    found = _plain(f"{path}-journal") is not None
    if found:
        _check_journal(Path(f"{path}-journal"))
    if _plain(f"{path}-wal") is not None:
        raise CorruptError(f"{path}-wal is a write-ahead log, which this program does not use. {_NO_WAL}")
    _plain(f"{path}-shm")
    return found


def refuse_wal(path: Path, mode: str) -> None:
    """Raises CorruptError where `mode`, what SQLite says is the journal mode of the catalog, is "wal"."""
    if mode.lower() == "wal":
        raise CorruptError(f"{path} was switched to write-ahead logging by another program. {_NO_WAL}")


_NO_WAL = (
    "If the database is yours, close that program, and then turn it off: sqlite3 catalog.sqlite 'PRAGMA"
    " journal_mode=DELETE'. If you received it, do not use it"
)


def _plain(path: str) -> os.stat_result | None:
    """What the plain file at `path` is; None where there is none. Raises CorruptError for anything else."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        raise CorruptError(
            f"{path} is a link, which may lead outside the database: it was not followed. Put the file itself in its"
            " place"
        )
    if not stat.S_ISREG(found.st_mode):
        raise CorruptError(f"{path} is no plain file: restore the database from a copy")
    return found


def _check_journal(path: Path) -> None:
    """The journal of a killed writer passes, and so does that of a writer at work, which may vanish meanwhile."""
    try:
        # SQLite keeps its locks on the catalog, so closing the journal drops none.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(handle)
        end = os.pread(handle, len(JOURNAL_MAGIC), max(0, found.st_size - len(JOURNAL_MAGIC)))
    finally:
        os.close(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise CorruptError(f"{path} is no plain file, or has a second name: restore the database from a copy")
    if found.st_size >= _SHORTEST_NAMED and end == JOURNAL_MAGIC:
        raise CorruptError(
            f"{path} names another file, which SQLite would delete; this program writes no such journal. Nothing was"
            " opened: somebody made this file, so do not trust this folder; restore the database from a copy"
        )
