"""Two that make a database in one folder, and what is on the disk when one is made, copied or repaired."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.exchanged import EDITOR, PlacedEditor, fingerprint
from neuraldb_faiss import integrity
from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits import merge as merging
from neuraldb_faiss.errors import LockedError, StoreError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, copy, verify


def fact(subject: str, target: str = "Rome") -> Fact:
    return Fact(subject, "{} is in", target)


class OtherEditor(PlacedEditor):
    def settings(self) -> DatabaseConfig:
        return replace(super().settings(), gamma=0.9)


def build(work: Path) -> None:
    changes.build([fact("Paris")], EDITOR, work / "new").close()


def merge(work: Path) -> None:
    merging.merge([Store(work / "db"), Store(work / "other")], out=work / "new")[0].close()


def import_it(work: Path) -> None:
    import_file(work / "file", out=work / "new").close()


@pytest.fixture
def work(quick_path: Path) -> Path:
    changes.build([fact("Oslo"), fact("Lima")], EDITOR, quick_path / "db").close()
    store = changes.build([fact("Ulm")], EDITOR, quick_path / "other")
    export(store, quick_path / "file", "safetensors")
    return quick_path


@pytest.mark.parametrize("command", [build, merge, import_it], ids=lambda command: command.__name__)
def test_nobody_comes_between_a_new_folder_and_its_first_write(
    command: Callable[[Path], None], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write
    tried: list[Any] = []

    def intruded(self: Store, *arguments: Any, **named: Any) -> Any:
        if not tried and self.root == work / "new":
            tried.append(True)
            for editor in (EDITOR, OtherEditor(fingerprint())):
                with pytest.raises(LockedError, match="is being written by process"):
                    changes.build([fact("Rome")], editor, work / "new", wait=0)
        return write(self, *arguments, **named)

    monkeypatch.setattr(Store, "write", intruded)
    command(work)
    assert tried
    store = Store(work / "new")
    assert store.generation == 1 and verify(store, deep=True) == []
    assert "Rome" not in {found.subject for found in store.catalog.facts(1)}
    assert store.config(1).gamma == 0.65


def test_of_two_builds_at_once_one_makes_the_database(quick_path: Path) -> None:
    for number in range(8):
        root = quick_path / f"db{number}"
        children = []
        for editor, subject in ((EDITOR, "Paris"), (OtherEditor(fingerprint()), "Oslo")):
            child = os.fork()
            if child == 0:
                code = 9
                try:
                    changes.build([fact(subject)], editor, root)
                    code = 0
                except StoreError:
                    code = 1
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert sorted(codes) == [0, 1]
        store = Store(root)
        (found,) = store.catalog.facts(store.generation)
        assert found.subject == ("Paris", "Oslo")[codes.index(0)]
        assert store.config(1).gamma == (0.65, 0.9)[codes.index(0)]
        assert verify(store, deep=True) == []
        store.close()


def test_a_build_takes_over_where_the_one_before_it_failed(quick_path: Path) -> None:
    """The failing one removes the folder while another waits for its lock."""
    children: list[int] = []

    class Failing(PlacedEditor):
        def make_keys(self, *_: Any) -> Any:
            children.append(os.fork())
            if children[-1] == 0:
                code = 1
                try:
                    changes.build([fact("Oslo")], EDITOR, quick_path / "new")
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        changes.build([fact("Paris")], Failing(fingerprint()), quick_path / "new")
    _, status = os.waitpid(children[0], 0)
    assert status == 0
    store = Store(quick_path / "new")
    assert [found.subject for found in store.catalog.facts(1)] == ["Oslo"]


def test_the_folder_of_a_failed_build_goes_with_what_was_made(quick_path: Path) -> None:
    class Failing(PlacedEditor):
        def make_keys(self, *_: Any) -> Any:
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        changes.build([fact("Paris")], Failing(fingerprint()), quick_path / "new")
    assert not (quick_path / "new").exists()


class Synced:
    """Which files and folders were synced, by what they are: their names change."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seen: set[tuple[int, int]] = set()
        fsync = os.fsync

        def noted(handle: int) -> None:
            found = os.fstat(handle)
            self._seen.add((found.st_dev, found.st_ino))
            fsync(handle)

        monkeypatch.setattr(os, "fsync", noted)

    def __contains__(self, path: Path) -> bool:
        found = path.stat()
        return (found.st_dev, found.st_ino) in self._seen


SQLITES = {"catalog.sqlite", "writer.lock"}  # SQLite syncs its own; the lock is empty


def missing(synced: Synced, *roots: Path) -> list[Path]:
    found = [path for root in roots for path in (root, *root.rglob("*")) if path.name not in SQLITES]
    return [path for path in found if path not in synced]


@pytest.mark.parametrize("command", [build, merge, import_it], ids=lambda command: command.__name__)
def test_a_new_database_is_synced(command: Callable[[Path], None], work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = Synced(monkeypatch)
    command(work)
    assert missing(synced, work / "new") == [] and work in synced


def test_every_folder_that_a_build_makes_is_synced(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = Synced(monkeypatch)
    changes.build([fact("Paris")], EDITOR, quick_path / "a" / "b" / "db").close()
    assert missing(synced, quick_path / "a") == [] and quick_path in synced


def test_a_copy_is_synced(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = Synced(monkeypatch)
    copy(Store(work / "db"), work / "a" / "copy", beside=lambda _: {"README.md": b"mine"}).close()
    assert missing(synced, work / "a") == [] and work in synced
    assert work / "a" / "copy" / "catalog.sqlite" in synced


def test_a_quarantine_is_synced(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = work / "db" / "segments" / "00000001" / "keys.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    synced = Synced(monkeypatch)
    done = integrity.repair(work / "db")
    assert done.quarantined and missing(synced, work / "db" / "quarantine") == [] and work / "db" in synced
