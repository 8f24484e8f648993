"""Reading, writing and syncing of the store's files; tests inject disk faults here.

A file becomes part of a database in three steps: written under a temporary name and fsynced, renamed into
place with its folder fsynced, and only then named in the catalog. No link is ever written through.
"""

from __future__ import annotations

import errno
import hashlib
import io
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
SMALL = 1 << 20  # bytes; a smaller array is read: a map keeps a descriptor, and is one of the 65,530 of a process


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
    """Create `path` for writing; nothing may be there, not even a link that leads nowhere."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "wb")


def write(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data`; a short write is an error of the disk, never a silent truncation."""
    written = file.write(data)
    if written != len(data):
        raise OSError(errno.EIO, f"short write: {written} of {len(data)} bytes")


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """`sync`, for what another library wrote and closed."""
    with naming(path), open(path, "rb") as file:
        sync(file)


def sync_folder(path: Path) -> None:
    """Make it durable which names are in the folder `path`."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_entry(path: Path) -> None:
    """Make it durable that `path` is in its folder."""
    handle = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(path: Path) -> None:
    """Make every file and folder below `path` durable, for what another library wrote."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


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


def make_folder(path: Path, *, durable: bool = True) -> None:
    """Create the folder `path`, and those above it that are missing.

    Args:
        durable: on the disk on return. False for one that is renamed once it is full, which syncs its entry anyhow.
    """
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
    path.mkdir()
    for folder in (path, *missing) if durable else missing:
        sync_entry(folder)


def ensure_folder(path: Path) -> None:
    """`make_folder`, unless it is there."""
    if path.is_dir():
        return
    try:
        make_folder(path)
    except FileExistsError:
        if not path.is_dir():  # else another process was faster
            raise


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)
    sync_entry(target)


def open_append(path: Path) -> BinaryIO:
    """Open a plain file for appending, made if it is missing. Raises OSError for a link."""
    new = not os.path.lexists(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if new:
        sync_entry(path)
    return os.fdopen(descriptor, "ab")


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
    """`path`, unless it or a folder on the way to it from the folder `root` is a link.

    Raises:
        CorruptError: one is.
    """
    here = str(root)
    for part in path.relative_to(root).parts:
        here = os.path.join(here, part)
        if os.path.islink(here):
            raise CorruptError(
                f"{here} is a link, which may lead outside the database {root}: it was not followed. Put the file or"
                " folder itself in its place"
            )
    return path


def write_array(path: Path, dtype: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> dict[str, object]:
    """Stream `chunks` (rows of one array) into a `.npy` file of version 1.0.

    Returns:
        {"bytes": size, "sha256": hex}, as the catalog keeps it.
    """
    with naming(path), open_new(path) as file:
        written = stream_array(file, path.name, dtype, shape, chunks)
        sync(file)
        return written


def stream_array(
    file: BinaryIO, name: str, dtype: str, shape: tuple[int, ...], chunks: Iterable[np.ndarray]
) -> dict[str, object]:
    """`write_array` into an open file, which is called `name` in errors and is not synced."""
    digest = hashlib.sha256()
    rows = 0

    class Tee:
        def write(self, data: bytes) -> None:
            digest.update(data)
            write(file, data)

    Tee().write(header_of(dtype, shape))
    for chunk in chunks:
        data = np.ascontiguousarray(chunk, dtype=dtype)
        if data.shape[1:] != shape[1:]:
            raise ValueError(f"rows of shape {data.shape[1:]} for {name}, want {shape[1:]}")
        rows += len(data)
        view = data.data.cast("B") if data.size else memoryview(b"")
        digest.update(view)
        write(file, view)
    if rows != shape[0]:
        raise ValueError(f"{rows} rows for {name}, want {shape[0]}")
    return {"bytes": file.tell(), "sha256": digest.hexdigest()}


def open_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """`open_whole` without the header."""
    return open_whole(path, dtype, shape)[1]


def open_whole(path: Path, dtype: str, shape: tuple[int, ...]) -> tuple[bytes, np.ndarray]:
    """A `.npy` file, read-only, after checking that it is exactly what the catalog says: its header and its array,
    memory-mapped, or read where the file is no larger than `SMALL`.

    Nothing in the header is trusted: type and shape must be the expected ones, and the file exactly as long
    as they need, so a hostile header can neither run code nor make us allocate.

    Raises:
        CorruptError: header or length differ.
        StoreError: the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            written = header_of(dtype, shape)
            header = file.read(len(written))
            if header != written:
                header = _other_header(path, file, dtype, shape)
            start = len(header)
            want = start + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            have = os.fstat(file.fileno()).st_size
            if have != want:
                raise CorruptError(f"{path}: {have} bytes long, should be {want} (a half-copied file?)")
            if 0 in shape:
                return header, np.empty(shape, dtype)
            if want <= SMALL:
                data = file.read()
                if len(data) != want - start:
                    raise CorruptError(f"{path}: {start + len(data)} bytes long, should be {want}")
                return header, np.frombuffer(data, dtype).reshape(shape)
            # By the open file, not by its name: a compaction may take that away in between.
            return header, np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing (a half-copied database?)") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def header_of(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What `write_array` puts before an array. Comparing with it takes a tenth of the time of NumPy's parser."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape})
    return header.getvalue()


def _other_header(path: Path, file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> bytes:
    """A header that is not ours to the letter; `file` stands behind it then. Raises CorruptError unless it says the
    same."""
    file.seek(0)
    try:
        version = npy.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"version {version}")
        found, fortran, kind = npy.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    except Exception as error:  # NumPy raises many kinds over a damaged header
        raise CorruptError(f"{path}: not a readable array header ({error})") from None
    if found != shape or fortran or kind != np.dtype(dtype):
        raise CorruptError(f"{path}: holds {kind} {found}, the catalog says {np.dtype(dtype)} {shape}")
    start = file.tell()
    file.seek(0)
    return file.read(start)
