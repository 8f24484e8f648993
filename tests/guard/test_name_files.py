"""The kept name index: used when it is whole and of this database, made anew in every other case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.guard import name_files
from neuraldb_faiss.guard.name_files import damaged_subjects, forget_subjects, load_subjects
from neuraldb_faiss.guard.subject import SubjectMatcher

MANIFEST = "subjects.json"
HASHES, ENTRIES = "subjects.hashes.npy", "subjects.entries.npy"
NAMES = {0: ("Eiffel Tower",), 1: ("Marie Curie", "Мария"), 2: ("Paris",), 3: ("Oslo",), 4: ("Bonn",)}


class Source(FakeSnapshot):
    """Generation g has the names of the entries below made[g]."""

    floors: dict[str, float] = {}
    made = {1: 3, 2: 5}

    def __init__(self, folder: Path | None, generation: int = 1, *, epoch: int = 1, world: str = "a") -> None:
        super().__init__(np.eye(5), epoch=epoch, generation=generation)
        self.search_folder, self.world = folder, world
        self.read = 0

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        for entry, names in NAMES.items():
            if self.made.get(after, 0) <= entry < self.made[self.generation]:
                self.read += len(names)
                yield from ((entry, entry, name) for name in names)

    def stamp_of(self, generation: int) -> str | None:
        return f"{self.world}{generation}" if generation in self.made else None

    def names(self, entry_id: int) -> tuple[str, ...]:
        return NAMES[entry_id]


@pytest.fixture(autouse=True)
def _save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_files, "SAVE_AGAIN", 0)


def read(source: Source) -> int:
    """How many names opening hashes; and it must know all of them."""
    subjects = SubjectMatcher(source, gamma=0.5)._view.subjects
    plain = SubjectMatcher(Source(None, source.generation), gamma=0.5)._view.subjects
    assert set(zip(plain.hashes.tolist(), plain.entries.tolist(), strict=True)) <= set(
        zip(subjects.hashes.tolist(), subjects.entries.tolist(), strict=True)
    )
    assert subjects.longest >= plain.longest and (np.diff(subjects.hashes.astype(object)) >= 0).all()
    return source.read


def test_only_the_first_opening_hashes_and_later_ones_what_is_new(tmp_path: Path) -> None:
    assert read(Source(tmp_path)) == 4
    assert read(Source(tmp_path)) == 0
    assert read(Source(tmp_path, 2)) == 2
    assert read(Source(tmp_path, 2)) == 0
    assert read(Source(tmp_path, 1)) == 0  # an older generation may know later names: their entries have no keys
    assert damaged_subjects(tmp_path) == []
    forget_subjects(tmp_path)
    assert not list(tmp_path.iterdir()) and read(Source(tmp_path, 2)) == 6


@pytest.mark.parametrize("name", [HASHES, ENTRIES, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty", "link", "swap"])
def test_damaged_files_are_made_anew(tmp_path: Path, name: str, damage: str) -> None:
    read(Source(tmp_path))
    path = tmp_path / name
    content = path.read_bytes()
    if damage == "flip":
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_bytes((tmp_path / (HASHES if name == ENTRIES else ENTRIES)).read_bytes())
    reported = {file for file, _ in damaged_subjects(tmp_path)}
    # The manifest itself may come by a link, its words are checked; whether one is missing is no damage.
    harmless = (damage, name) in (("link", MANIFEST), ("delete", MANIFEST))
    assert bool(reported) != harmless
    assert read(Source(tmp_path)) == (0 if (damage, name) == ("link", MANIFEST) else 4)
    assert load_subjects(Source(tmp_path)) is not None


@pytest.mark.parametrize(
    "change", [{"epoch": 2}, {"version": 0}, {"unicode": "1.0"}, {"generation": "1"}, {"origin": None}, {"longest": -1}]
)
def test_what_is_of_another_state_is_made_anew(tmp_path: Path, change: dict[str, object]) -> None:
    read(Source(tmp_path))
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, **change}))
    assert read(Source(tmp_path)) == 4


def test_neither_another_databases_files_nor_copied_ones_are_taken(tmp_path: Path) -> None:
    read(Source(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read(Source(tmp_path / "b")) == 4
    assert read(Source(tmp_path / "a", world="b")) == 4  # the catalog's digest differs


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert read(Source(tmp_path / "file")) == 4
    assert read(Source(None)) == 4
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_live_matcher_grows_by_what_is_new(tmp_path: Path) -> None:
    matcher = SubjectMatcher(Source(tmp_path), gamma=0.5)
    later = Source(tmp_path, 2)
    matcher.refresh(later)
    assert later.read == 2 and len(matcher._view.subjects) == 6
    whole = SubjectMatcher(Source(None, 2), gamma=0.5)._view.subjects
    assert matcher._view.subjects.hashes.tolist() == whole.hashes.tolist()
    assert matcher._view.subjects.entries.tolist() == whole.entries.tolist()
