"""Atomic writes: a file or folder appears complete and durable, or not at all.

Everything this package writes to a place that somebody can see goes through here, but for the arrays of a segment
(their folder appears whole, and counts once the catalog names it) and for files that grow (`files.open_append`).
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from neuraldb_faiss.store import files


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` when the block ends, whole and on the disk. After an error it does not,
    unless nothing but the last sync of its folder failed.

    It is written under another name in the same folder, so whatever `path` is until then (a file, a link) is replaced,
    and neither changed nor followed.

    Args:
        durable: False leaves it to the system when it reaches the disk, for what is worthless after a power cut.

    Raises:
        OSError: the disk failed; it names `path`.
    """
    _remove_abandoned(path)
    temporary = _temporary(path)
    try:
        with files.open_new(temporary) as file:
            try:
                _claim(file.fileno())
                yield file
                if durable:
                    files.sync(file)
                    files.rename(temporary, path)
                else:
                    file.flush()
                    os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(temporary)
                raise
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def write_file(path: Path, data: bytes) -> None:
    """`replacing`, with `data` written at once."""
    with replacing(path) as file:
        files.write(file, data)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that appears at `path` when the block ends; after an error nothing is left of it.

    What is written in it must be synced by then. `path` must be free, or an empty folder.

    Raises:
        OSError: the disk failed, or something is there.
    """
    path = path.absolute()
    _remove_abandoned(path)
    temporary = _temporary(path)
    files.make_folder(temporary)
    handle = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _claim(handle)
        yield temporary
        files.sync_folder(temporary)
        files.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            files.remove_tree(temporary)
        raise
    finally:
        os.close(handle)


_ABANDONED_SECONDS = 60.0  # a file younger than this may not be claimed yet by the process that makes it


def is_temporary(name: str) -> bool:
    """Whether a file or folder is named as `replacing` and `new_folder` name what is not whole yet."""
    return re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", name) is not None


def _stem(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:200])}."


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_stem(path)}{secrets.token_hex(8)}.tmp")


def _claim(handle: int) -> None:
    """Let nobody take this open file or folder for abandoned, while it is open."""
    with suppress(OSError):  # file systems without locks: then nobody else gets one either
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes left that were killed while they wrote `path`."""
    stem = _stem(path)
    try:
        names = [name for name in os.listdir(path.absolute().parent) if name.startswith(stem) and is_temporary(name)]
    except OSError:
        return
    for left in (path.with_name(name) for name in names if len(name) == len(stem) + 20):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(handle).st_mtime < _ABANDONED_SECONDS:
                    continue
                if left.is_dir():
                    files.remove_tree(left)
                else:
                    left.unlink()
            finally:
                os.close(handle)
