"""The disk fails at every single step of a command: an error that names the file, and nothing has changed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_editor import FakeEditor
from helpers.pieces import set_piece
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, files, verify

pytestmark = pytest.mark.usefixtures("eager_joining")
EDITOR = FakeEditor()


def fact(subject: str, target: str = "Rome", relation: str = "{} is in") -> Fact:
    return Fact(subject, relation, target, source="test")


def build(work: Path) -> None:
    changes.build([fact(f"City {n}") for n in range(4)], EDITOR, work / "new").close()


def add(work: Path) -> None:
    store = Store(work / "db", "rw")
    changes.add(store, EDITOR, [fact("Oslo"), fact("Paris", "Kyiv"), fact("Bonn")])
    store.close()


def compact_it(work: Path) -> None:
    store = Store(work / "db", "rw")
    compact(store)
    store.close()


def merge_anew(work: Path) -> None:
    merge.merge([Store(work / "db"), Store(work / "other")], out=work / "new")


def merge_into_it(work: Path) -> None:
    merge.merge([Store(work / "other")], into=Store(work / "db", "rw"))


COMMANDS = (build, add, compact_it, merge_anew, merge_into_it)


def no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def io_error(*_: Any) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def half(file: Any, data: bytes | memoryview) -> None:
    file.write(bytes(data)[: len(data) // 2])
    no_space()


def half_copied(source: Path, target: Path, **_: Any) -> None:
    target.write_bytes(source.read_bytes()[:100])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))


def short(file: Any, data: bytes | memoryview) -> None:
    raise OSError(f"short write: {len(data) // 2} of {len(data)} bytes")


def denied(path: Path, *_: Any, **__: Any) -> None:
    raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))


# What is patched, and what happens there instead; `os.fsync` and `os.rename` as Python itself raises them.
FAULTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "write no space": (files, "write", no_space),
    "write half": (files, "write", half),
    "write short": (files, "write", short),
    "write I/O error": (files, "write", io_error),
    "sync": (files, "sync", io_error),
    "fsync": (os, "fsync", io_error),
    "rename": (files, "rename", denied),
    "copy": (files, "copy_file", half_copied),
    "copy range": (os, "copy_file_range", no_space),
    "folder": (files, "make_folder", denied),
}


def content(root: Path) -> dict[str, str] | None:
    """What lives, verified; None where nothing is published."""
    try:
        store = Store(root)
    except StoreError:
        return None
    assert verify(store, deep=True) == []
    facts = {f.text: f.target for f in store.catalog.facts(store.generation)}
    store.close()
    return facts


def contents(work: Path) -> list[dict[str, str] | None]:
    return [content(work / name) for name in ("db", "other", "new")]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_step_may_fail(
    command: Callable[[Path], None], fault: str, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_piece(monkeypatch, 2)
    start, work = quick_path / "start", quick_path / "work"
    changes.build([fact("Paris"), fact("Lima")], EDITOR, start / "db").close()
    changes.build([fact("Ulm"), fact("Jena")], EDITOR, start / "other").close()
    before = contents(start)
    where, name, instead = FAULTS[fault]
    real, calls, failing = getattr(where, name), 0, -1

    def patched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return (instead if calls - 1 == failing else real)(*arguments, **named)

    monkeypatch.setattr(where, name, patched)
    shutil.copytree(start, work)
    command(work)
    after, total = contents(work), calls
    assert after != before or command is compact_it
    shutil.rmtree(work)
    steps = range(total)
    if fault.startswith("write") and fault != "write half":  # two a file: every third will do where "half" tries all
        steps = range(0, total, 3)
    for step in steps:
        shutil.copytree(start, work)
        calls, failing = 0, step
        with pytest.raises(StoreError, match=r"\.npy|segments|new cannot be made") as caught:
            command(work)
        assert str(work) in str(caught.value)
        failing = -1
        assert contents(work) == before
        command(work)
        assert contents(work) == after
        shutil.rmtree(work)
    print(f"{command.__name__}, {fault}: {len(steps)} of {total} steps failed in turn")


def test_a_folder_that_cannot_go_does_not_undo_a_commit(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = changes.build([fact("Paris")], EDITOR, quick_path / "db")
    changes.add(store, EDITOR, [fact("Lima")])
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", denied)
        assert compact(store).generation == 3
    assert verify(store, deep=True) == []
    changes.add(store, EDITOR, [fact("Oslo")])  # and the next writer removes it
    named = {f"{record.segment:08d}" for record in store.catalog.segments(store.generation)}
    assert {path.name for path in (store.root / "segments").iterdir()} == named


def test_a_full_disk_under_the_catalog(quick_path: Path) -> None:
    store = changes.build([fact("Paris")], EDITOR, quick_path / "db")
    many = [fact(f"City {n}", metadata) for n, metadata in enumerate(["x" * 999] * 100)]
    pages = store.catalog.one("PRAGMA page_count")
    for more in (0, 1, 3, 9, 20, 30):
        store.catalog.all(f"PRAGMA max_page_count = {pages + more}")
        with pytest.raises(StoreError, match=r"catalog\.sqlite: the disk is full"):
            changes.add(store, EDITOR, many)
        assert content(store.root) == {"Paris is in": "Rome"}
    store.catalog.all("PRAGMA max_page_count = 1000000")
    done = changes.add(store, EDITOR, many)
    assert done is not None and done.added == 100
    assert verify(store, deep=True) == []
