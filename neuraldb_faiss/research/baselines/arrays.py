"""Arrays kept on disk under a name that says what they are: one .npy file, and beside it a JSON record.

A record is written after its array is safe, so a killed run leaves at most an array that nothing names. No pickle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.store import atomic, files


def save(folder: Path, name: str, array: np.ndarray, record: Mapping[str, Any]) -> None:
    """Write `array` and `record` (JSON values) as `name`; the same name is replaced as a whole.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        files.ensure_folder(folder)
        with atomic.replacing(folder / f"{name}.npy") as file:
            written = files.stream_array(file, f"{name}.npy", array.dtype.str, array.shape, [array])
        full = {**record, "dtype": array.dtype.str, "shape": list(array.shape), "sha256": written["sha256"]}
        text = json.dumps(full, sort_keys=True, indent=1, ensure_ascii=False) + "\n"
        atomic.write_file(folder / f"{name}.json", text.encode())
    except OSError as error:
        raise StoreError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error


def records(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, record) of everything saved in `folder`, by name; nothing where there is no folder.

    Raises:
        CorruptError: a record cannot be read.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            record["shape"], record["dtype"], record["sha256"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise CorruptError(f"{path} cannot be read ({error}): remove it, and it is made anew") from None
        yield path.stem, record


def load(folder: Path, name: str, record: Mapping[str, Any]) -> np.ndarray:
    """The array that `record` belongs to, memory-mapped, its bytes checked.

    Raises:
        CorruptError: it is missing, or not what was written.
    """
    path = folder / f"{name}.npy"
    try:
        array = files.open_array(path, record["dtype"], tuple(record["shape"]))
        same = files.sha256(path) == record["sha256"]
    except (StoreError, TypeError, ValueError, OSError) as error:
        raise CorruptError(f"{path} cannot be used ({error}): remove {name}.json, and it is made anew") from None
    if not same:
        raise CorruptError(f"{path} is not what was written: remove {name}.json beside it, and it is made anew")
    return array
