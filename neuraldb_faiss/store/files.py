"""The few functions through which the store touches files, so that faults can be put in one place.

A file becomes part of a database in three steps: written under a temporary name and fsynced, renamed into
place with its folder fsynced, and only then named in the catalog.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from neuraldb_faiss.errors import CorruptError, StoreError

_MAX_HEADER = 512  # bytes; ours take 128, and a longer one in a received folder is not ours


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk inside name the file; writing and syncing leave that out by themselves."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def open_new(path: Path) -> BinaryIO:
    """Create `path` for writing; it must not exist."""
    return open(path, "xb")


def write(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data`; a short write is an error of the disk, never a silent truncation."""
    written = file.write(data)
    if written != len(data):
        raise OSError(f"short write: {written} of {len(data)} bytes")


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make renames inside `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


Place = tuple[int, int]


def place_of(path: Path) -> Place | None:
    """Device and inode of the file at `path`: another file put there has others. None where there is none.

    A catalog is not opened for it: SQLite's locks on it would go with the closing.
    """
    try:
        info = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_dev, info.st_ino


def changed_at(path: Path) -> int | None:
    """When the bytes of the file at `path` last changed, in nanoseconds; None where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None


def make_folder(path: Path) -> None:
    path.mkdir(parents=True)


def rename(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_folder(target.parent)


def remove_tree(path: Path) -> None:
    shutil.rmtree(path)


def copy_file(source: Path, target: Path, *, link: bool = False) -> None:
    """Copy (in the kernel where it can) or hard-link one immutable file; durable on return."""
    if link:
        os.link(source, target)
        return
    with naming(target), open(source, "rb") as old, open_new(target) as new:
        left = os.fstat(old.fileno()).st_size
        while left:
            try:
                done = os.copy_file_range(old.fileno(), new.fileno(), left)
            except OSError as error:
                if new.tell() or error.errno not in _NO_KERNEL_COPY:
                    raise
                shutil.copyfileobj(old, new, 1 << 24)
                break
            if done == 0:
                raise CorruptError(f"{source} ended {left} bytes early while it was copied")
            left -= done
        sync(new)


_NO_KERNEL_COPY = {18, 22, 38, 95}  # EXDEV, EINVAL, ENOSYS, EOPNOTSUPP


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def within(root: Path, path: Path) -> Path:
    """`path`, unless it leaves the folder `root` through a symlink.

    Raises:
        CorruptError: it does.
    """
    if not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
        raise CorruptError(f"{path} points outside the database {root}; nothing was read from it")
    return path


def write_array(path: Path, dtype: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> dict[str, object]:
    """Stream `chunks` (rows of one array) into a `.npy` file of version 1.0.

    Returns:
        {"bytes": size, "sha256": hex}, as the catalog keeps it.
    """
    digest = hashlib.sha256()
    rows = 0
    with naming(path), open_new(path) as file:

        class Tee:
            def write(self, data: bytes) -> None:
                digest.update(data)
                write(file, data)

        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(Tee(), header)  # type: ignore[arg-type]
        for chunk in chunks:
            data = np.ascontiguousarray(chunk, dtype=dtype)
            if data.shape[1:] != shape[1:]:
                raise ValueError(f"rows of shape {data.shape[1:]} for {path.name}, want {shape[1:]}")
            rows += len(data)
            view = data.data.cast("B") if data.size else memoryview(b"")
            digest.update(view)
            write(file, view)
        if rows != shape[0]:
            raise ValueError(f"{rows} rows for {path.name}, want {shape[0]}")
        sync(file)
        return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Memory-map a `.npy` file read-only, after checking that it is exactly what the catalog says.

    Nothing in the header is trusted: type and shape must be the expected ones, and the file exactly as long
    as they need, so a hostile header can neither run code nor make us allocate.

    Raises:
        CorruptError: header or length differ.
        StoreError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            try:
                version = npy.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version}")
                found, fortran, kind = npy.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
            except Exception as error:  # numpy raises many kinds over a damaged header
                raise CorruptError(f"{path}: not a readable array header ({error})") from None
            if found != shape or fortran or kind != np.dtype(dtype):
                raise CorruptError(
                    f"{path}: holds {kind} {found}, the catalog says {np.dtype(dtype)} {shape}"
                )
            start = file.tell()
            want = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            have = os.fstat(file.fileno()).st_size
            if have != want:
                raise CorruptError(f"{path}: {have} bytes long, should be {want} (a half-copied file?)")
            if 0 in shape:
                return np.empty(shape, dtype)
            # By the open file, not by its name: a compaction may take that away in between.
            return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing (a half-copied database?)") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
