"""What lies in a database folder and is not ours is neither deleted, nor written through, nor replaced."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from helpers.exchanged import EDITOR
from neuraldb_faiss import integrity
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import ConflictError, CorruptError, StoreError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, copy, verify

PARTS = ["segments", "search", "quarantine", "writer.json", "writer.lock"]


def fact(subject: str, target: str = "Rome") -> Fact:
    return Fact(subject, "{} is in", target)


@pytest.fixture
def root(quick_path: Path) -> Path:
    changes.build([fact("Paris"), fact("Oslo")], EDITOR, quick_path / "db").close()
    return quick_path / "db"


@pytest.fixture
def elsewhere(quick_path: Path) -> Path:
    """A folder of somebody's, whose names look like ours."""
    folder = quick_path / "elsewhere"
    for name in ("00000007", "00000001.tmp", "notes"):
        (folder / name).mkdir(parents=True)
        (folder / name / "keys.npy").write_text("precious")
    return folder


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", PARTS)
def test_a_linked_part_is_refused_by_readers_and_writers(root: Path, elsewhere: Path, name: str) -> None:
    target = elsewhere if "." not in name else elsewhere / "victim.conf"
    if "." in name:
        target.write_text("precious")
    before = listing(elsewhere)
    writer = Store(root, "rw")
    path = root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(CorruptError, match=f"{name} is a link, which may lead outside"):
        changes.add(writer, EDITOR, [fact("Lima")])
    for mode in ("r", "rw"):
        with pytest.raises(CorruptError, match=f"{name} is a link"):
            Store(root, mode)
    with pytest.raises(CorruptError, match=f"{name} is a link"):
        integrity.repair(root)
    assert listing(elsewhere) == before


@pytest.mark.parametrize("how", ["import", "merge", "repair", "add"])
def test_linked_segments_are_neither_swept_nor_written(root: Path, elsewhere: Path, quick_path: Path, how: str) -> None:
    other = changes.build([fact("Ulm")], EDITOR, quick_path / "other")
    export(other, quick_path / "file", "safetensors")
    (root / "segments").rename(quick_path / "kept")
    (root / "segments").symlink_to(elsewhere)
    before = listing(elsewhere)
    with pytest.raises(CorruptError, match="segments is a link"):
        if how == "import":
            import_file(quick_path / "file", into=root)
        elif how == "merge":
            merge.merge([other], into=Store(root, "rw"))
        elif how == "repair":
            integrity.repair(root)
        else:
            changes.add(Store(root, "rw"), EDITOR, [fact("Lima")])
    assert listing(elsewhere) == before


def test_a_linked_segment_is_not_swept(root: Path, elsewhere: Path) -> None:
    before = listing(elsewhere)
    (root / "segments" / "00000009").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="00000009 is a link"):
        changes.add(Store(root, "rw"), EDITOR, [fact("Lima")])
    assert listing(elsewhere) == before


def test_a_segment_linked_to_another_of_the_database_is_refused(root: Path) -> None:
    (root / "segments" / "00000001").rename(root / "segments" / "real")
    (root / "segments" / "00000001").symlink_to("real")
    with pytest.raises(CorruptError, match="00000001 is a link"):
        Store(root).snapshot()


def test_a_linked_segment_is_not_taken_into_quarantine(root: Path, elsewhere: Path) -> None:
    shutil.rmtree(root / "segments" / "00000001")
    (root / "segments" / "00000001").symlink_to(elsewhere / "00000007")
    with pytest.raises(CorruptError, match="00000001 is a link"):
        integrity.repair(root)
    assert not list((root / "quarantine").rglob("*.npy")) and Store(root).generation == 1


def test_what_is_not_named_as_ours_is_not_swept(root: Path) -> None:
    for name in ("notes", "1", "00000001.bak", "00000001 (copy)"):
        (root / "segments" / name).mkdir()
    (root / "segments" / "README").write_text("mine")
    (root / "segments" / "00000099").mkdir()  # this one a killed writer may have left
    store = Store(root, "rw")
    changes.add(store, EDITOR, [fact("Lima")])
    compact(store)
    left = {path.name for path in (root / "segments").iterdir()}
    assert left >= {"notes", "1", "00000001.bak", "00000001 (copy)", "README"} and "00000099" not in left
    assert verify(store, deep=True) == []


def test_a_restored_backup_is_not_swept_by_who_had_the_old_one_open(root: Path, quick_path: Path) -> None:
    """A program holds a handle; the folder is moved away, and a backup put in its place."""
    backup = quick_path / "backup"
    shutil.copytree(root, backup)
    handle = Store(root, "rw")
    changes.add(handle, EDITOR, [fact("Lima")])
    compact(handle)  # the backup's segments are no longer named
    root.rename(quick_path / "old")
    backup.rename(root)
    before = listing(root)
    for command in (lambda: changes.add(handle, EDITOR, [fact("Bonn")]), lambda: compact(handle)):
        with pytest.raises(StoreError, match="moved or replaced since it was opened"):
            command()
        assert listing(root) == before
    assert verify(Store(root), deep=True) == []
    changes.add(Store(root, "rw"), EDITOR, [fact("Bonn")])


def test_a_folder_replaced_in_the_middle_of_a_change_is_left_alone(root: Path, quick_path: Path) -> None:
    backup = quick_path / "backup"
    shutil.copytree(root, backup)
    before = listing(backup)
    handle = Store(root, "rw")
    compact(handle)
    with pytest.raises(StoreError, match="moved or replaced"), handle.write("test") as transaction:
        root.rename(quick_path / "old")
        backup.rename(root)
        transaction.set_setting("gamma", 0.5)
        transaction.commit()
    after = listing(root)
    assert {name: after[name] for name in before} == before
    assert verify(Store(root), deep=True) == []


def test_a_removed_folder_is_told(root: Path) -> None:
    handle = Store(root, "rw")
    shutil.rmtree(root)
    with pytest.raises(StoreError, match="moved or replaced"):
        changes.add(handle, EDITOR, [fact("Lima")])


def test_a_record_of_the_writer_is_replaced_not_written(root: Path, quick_path: Path) -> None:
    """A second name of somebody's file keeps its content."""
    victim = quick_path / "victim.conf"
    for name in ("writer.json", "writer.lock"):
        victim.write_text("precious")
        (root / name).unlink(missing_ok=True)
        os.link(victim, root / name)
        changes.add(Store(root, "rw"), EDITOR, [fact(f"City {name}")])
        assert victim.read_text() == "precious"
        victim.unlink()


@pytest.mark.parametrize("name", ["search", "segments", "quarantine", "notes"])
def test_a_folder_of_somebodys_is_not_built_in(quick_path: Path, name: str) -> None:
    (quick_path / "new" / name).mkdir(parents=True)
    (quick_path / "new" / name / "thesis.txt").write_text("precious")
    before = listing(quick_path / "new")
    with pytest.raises(StoreError, match=f"holds other files \\({name}\\)"):
        changes.build([fact("Paris")], EDITOR, quick_path / "new")
    assert listing(quick_path / "new") == before


def test_a_failed_merge_removes_only_what_it_made(root: Path, quick_path: Path) -> None:
    other = changes.build([fact("Paris", "Kyiv")], EDITOR, quick_path / "other")
    unfinished = quick_path / "out"
    unfinished.mkdir()
    with pytest.raises(ConflictError):
        merge.merge([Store(root), other], out=unfinished)
    assert not unfinished.exists()
    (quick_path / "out").mkdir()
    shutil.copy(root / "catalog.sqlite", unfinished)  # as a download lies there: with what may lie beside it
    (unfinished / "README.md").write_text("mine")
    with pytest.raises(StoreError, match="finished database"):
        merge.merge([Store(root), other], out=unfinished)
    assert (unfinished / "README.md").read_text() == "mine" and (unfinished / "catalog.sqlite").exists()


def test_neighbours_with_our_temporary_names_stay(root: Path, quick_path: Path) -> None:
    """`NAME.tmp` beside a copy or an export is somebody's."""
    (quick_path / "copied.tmp").mkdir()
    (quick_path / "copied.tmp" / "mine").write_text("precious")
    (quick_path / "facts.jsonl.tmp").write_text("precious")
    copy(Store(root), quick_path / "copied")
    export(Store(root), quick_path / "facts.jsonl")
    assert (quick_path / "copied.tmp" / "mine").read_text() == "precious"
    assert (quick_path / "facts.jsonl.tmp").read_text() == "precious"
