"""The disk fails at every step of an import or a copy: an error that names the file, and nothing has changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import digest
from helpers.exchanged import EDITOR, rows
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.exchange import export, read_file
from neuraldb_faiss.exchange.hub import save
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, files, verify


def import_anew(work: Path) -> None:
    import_file(work / "facts.safetensors", out=work / "new").close()


def import_into(work: Path) -> None:
    import_file(work / "facts.safetensors", into=work / "db").close()


def save_copy(work: Path) -> None:
    store = Store(work / "db")
    try:
        save(store, work / "new")
    finally:
        store.close()


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def denied(path: Path, *_: Any, **__: Any) -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


FAULTS: dict[str, Callable[..., None]] = {"write": no_space, "sync": no_space, "rename": denied, "make_folder": denied}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("command", [import_anew, import_into, save_copy], ids=lambda command: command.__name__)
def test_every_step_may_fail(
    rich: Store, command: Callable[[Path], None], name: str, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_file, "SEGMENT_ENTRIES", 4)
    start, work = quick_path / "start", quick_path / "work"
    changes.build([Fact("Bern", "In {} is", "Peru")], EDITOR, start / "db").close()
    export(rich, start / "facts.safetensors", "safetensors")
    real, calls, failing = getattr(files, name), 0, -1

    def patched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return (FAULTS[name] if calls - 1 == failing else real)(*arguments, **named)

    monkeypatch.setattr(files, name, patched)
    shutil.copytree(start, work)
    command(work)
    after, total = facts_of(work), calls
    shutil.rmtree(work)
    for step in range(0, total, 3 if name == "write" else 1):
        shutil.copytree(start, work)
        calls, failing = 0, step
        with pytest.raises(StoreError, match=str(work)):
            command(work)
        failing = -1
        assert digest(work) == digest(start)
        assert not list(work.rglob("*.tmp"))
        command(work)
        assert facts_of(work) == after
        shutil.rmtree(work)
    assert total > 0


def facts_of(work: Path) -> list[Any]:
    found = []
    for path in sorted(path for path in work.iterdir() if path.is_dir()):
        store = Store(path)
        assert verify(store, deep=True) == []
        found.append([{**row, "time": None} for row in rows(store)])
        store.close()
    return found
