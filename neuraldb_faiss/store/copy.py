"""Copy of a database folder that holds committed data only."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.store import atomic, files, schema
from neuraldb_faiss.store.catalog import Catalog
from neuraldb_faiss.store.intact import check_catalog, check_file, error_for
from neuraldb_faiss.store.segments import ARRAYS
from neuraldb_faiss.store.store import Store


def copy(
    store: Store,
    folder: str | Path,
    *,
    link: bool = False,
    beside: Callable[[Store], Mapping[str, bytes]] | None = None,
) -> Store:
    """Copy the newest generation and the history before it into a new or empty `folder`; returns the copy, for reading.

    It takes no lock: a writer may work meanwhile, and the copy is of the last commit before. Neither staged pieces,
    `search/`, lock files nor anything else that lies in the folder goes along, nor what deleted rows leave in the
    catalog's free pages.

    Args:
        link: hard-link the arrays where the file system can; the copy is then for reading only.
        beside: given the copy, returns further files by name; they appear with it.

    Raises:
        CorruptError: rows or arrays are not what was written; the facts concerned are named.
        StoreError: `folder` holds something, the disk fails, or an array is missing.
    """
    folder = Path(folder)
    try:
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is there already: name a new folder for the copy")
        while True:
            newest = store.generation
            try:
                with atomic.new_folder(folder) as temporary:
                    _fill(store, temporary, link, beside)
                break
            except FileNotFoundError as error:
                # A commit may have joined or compacted the segments after the catalog was read.
                if store.generation == newest:
                    raise StoreError(f"{error.filename} is missing (a half-copied database?)") from None
    except OSError as error:
        where = error.filename or folder
        raise StoreError(f"{where}: {error.strerror or error}; nothing was copied to {folder}") from error
    return Store(folder)


def _fill(store: Store, folder: Path, link: bool, beside: Callable[[Store], Mapping[str, bytes]] | None) -> None:
    path = folder / schema.NAME
    store.catalog.copy_to(path)
    with closing(Catalog(folder, write=True)) as catalog:
        _copy_segments(store, catalog, folder, link)
        catalog.clean()
        check_catalog(catalog, store.root)
    files.sync_file(path)
    copied = Store(folder)
    try:
        copied.snapshot()  # raises where an array is not what the catalog says
        further = {} if beside is None else beside(copied)
    finally:
        copied.close()
    for name, data in further.items():
        atomic.write_file(folder / name, data)


def _copy_segments(store: Store, catalog: Catalog, folder: Path, link: bool) -> None:
    """The segments that the copied `catalog` names; the newest first, which are small: a commit may join them soon."""
    error_of = error_for(store.catalog, catalog.generation)
    for record in reversed(catalog.segments(catalog.generation)):
        target = folder / "segments" / record.name
        files.make_folder(target)
        for name in (f"{array}.npy" for array in ARRAYS):
            source = files.within(store.root, store.root / "segments" / record.name / name)
            try:
                files.copy_file(source, target / name, link=link)
            except OSError as error:
                if not link or error.errno not in _NO_LINK:
                    raise
                files.copy_file(source, target / name)
            check_file(source, target / name, record, error_of)
        files.sync_folder(target)


_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}
