"""Writer lock across processes, with a record of its holder."""

from __future__ import annotations

import errno
import fcntl
import getpass
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from neuraldb_faiss.errors import CorruptError, LockedError, StoreError
from neuraldb_faiss.store import atomic, files
from neuraldb_faiss.strict_json import parse_object

LOCK = "writer.lock"
RECORD = "writer.json"
_POLL_SECONDS = 0.05


@contextmanager
def writer_lock(root: Path, command: str, wait: float) -> Iterator[None]:
    """Hold the database's writer lock; wait for it at most `wait` seconds.

    The lock (`flock`) is on the file `writer.lock`, which is never written; the system lets go of it when the process
    ends, however it ends.

    Raises:
        LockedError: somebody else holds it; the message says who.
        StoreError: the folder cannot be written.
        CorruptError: one of the two files is a link.
    """
    if not os.access(root, os.W_OK):
        raise StoreError(f"{root} is read-only: give yourself write access, or work on a copy")
    record = files.within(root, root / RECORD)
    path = files.within(root, root / LOCK)
    try:
        handle = _acquire(path, wait)
    except BlockingIOError:
        raise LockedError(
            f"{root} is being written by {_holder(record)}; wait for it to end, or give a longer --wait"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be locked: {error.strerror}") from error
    try:
        with suppress(OSError):  # the record helps people; the lock itself does not need it
            who = {"pid": os.getpid(), "host": socket.gethostname(), "user": _user(), "command": command,
                   "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}  # fmt: skip
            with atomic.replacing(record, durable=False) as file:
                file.write(json.dumps(who).encode())
        yield
    finally:
        with suppress(OSError):
            record.unlink()
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a forked child that lives on would keep it
        os.close(handle)


def _acquire(path: Path, wait: float) -> int:
    """The locked file, open. Raises BlockingIOError when the time is up."""
    until = time.monotonic() + wait
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise CorruptError(f"{path} is no plain file: remove it")
            _flock(handle, until)
            # Whoever held it may have removed the file (a build that failed): then the lock is on nothing.
            if path.exists() and os.path.samestat(os.fstat(handle), os.lstat(path)):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _flock(handle: int, until: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if time.monotonic() >= until:
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from None
        time.sleep(_POLL_SECONDS)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user entry
        return str(os.getuid())


def _holder(record: Path) -> str:
    try:
        who = parse_object(record.read_text(encoding="utf-8"))
        told = {name: str(who[name])[:200] for name in ("pid", "user", "host", "command", "since")}
        return "process {pid} of {user} on {host} (`{command}` since {since})".format_map(told)
    except (OSError, ValueError, KeyError):
        return "another process"
