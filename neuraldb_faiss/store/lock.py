"""One writer at a time, across processes, with a record of who it is."""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from neuraldb_faiss.errors import LockedError, StoreError


@contextmanager
def writer_lock(root: Path, command: str, wait: float) -> Iterator[None]:
    """Hold the database's writer lock; wait for it at most `wait` seconds.

    Raises:
        LockedError: somebody else holds it; the message says who.
        StoreError: the folder cannot be written.
    """
    if not os.access(root, os.W_OK):
        raise StoreError(f"{root} is read-only: give yourself write access, or work on a copy")
    lock = FileLock(root / "writer.lock")
    record = root / "writer.json"
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise LockedError(
            f"{root} is being written by {_holder(record)}; wait for it to end, or give a longer --wait"
        ) from None
    except OSError as error:
        raise StoreError(f"{root / 'writer.lock'} cannot be locked: {error.strerror}") from error
    try:
        with suppress(OSError):  # the record helps people; the lock itself does not need it
            who = {"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "command": command,
                   "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
            record.write_text(json.dumps(who))
        yield
    finally:
        with suppress(OSError):
            record.unlink()
        lock.release()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user entry
        return str(os.getuid())


def _holder(record: Path) -> str:
    try:
        who = json.loads(record.read_text())
        return f"process {who['pid']} of {who['user']} on {who['host']} (`{who['command']}` since {who['since']})"
    except (OSError, ValueError, KeyError):
        return "another process"
