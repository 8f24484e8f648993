"""The saved clustering: used when it is this folder's own, made anew whenever anything is doubtful."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.index import Matcher, clustering_files, faiss_module, ivf
from neuraldb_faiss.index.clustering_files import CENTROIDS, LISTS, MANIFEST, load_clustering

KEYS = np.random.default_rng(0).standard_normal((2000, 32))


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The nlist of every training from now on."""
    seen: list[int] = []
    train = ivf.train

    def counting(source: FakeSnapshot, nlist: int) -> np.ndarray:
        seen.append(nlist)
        return train(source, nlist)

    monkeypatch.setattr(ivf, "train", counting)
    return seen


def works(folder: Path, keys: np.ndarray = KEYS, **options: int) -> None:
    matcher = Matcher(FakeSnapshot(keys), "ivf", gamma=0.65, directory=folder, **options)
    got = matcher.match(keys)
    assert got.fired.all() and got.entry_ids.tolist() == list(range(len(keys)))


def test_saved_once_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = trainings(monkeypatch)
    works(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CENTROIDS, MANIFEST, LISTS]
    before = (tmp_path / MANIFEST).read_bytes()
    works(tmp_path)
    assert len(seen) == 1 and (tmp_path / MANIFEST).read_bytes() == before
    works(tmp_path, np.concatenate([KEYS, KEYS[:50] + KEYS[50:100]]))  # a few more keys: added, not written
    assert len(seen) == 1 and (tmp_path / MANIFEST).read_bytes() == before
    works(tmp_path, np.concatenate([KEYS, KEYS[:500] + KEYS[500:1000]]))  # many more: written
    assert len(seen) == 1 and json.loads((tmp_path / MANIFEST).read_bytes())["n_keys"] == 2500
    works(tmp_path, nlist=7)
    works(tmp_path, nlist=7)
    assert seen[1:] == [7]


def test_an_index_opened_from_files_answers_as_the_one_that_made_them(tmp_path: Path) -> None:
    queries = np.random.default_rng(1).standard_normal((200, 32))
    made, loaded = (
        Matcher(FakeSnapshot(KEYS), "ivf", gamma=0.2, nlist=40, nprobe=2, directory=tmp_path).match(queries)
        for _ in range(2)
    )
    assert made.fired.any() and made.fired.tolist() == loaded.fired.tolist()
    assert made.entry_ids.tolist() == loaded.entry_ids.tolist()


@pytest.mark.parametrize("name", [CENTROIDS, LISTS, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty", "link"])
def test_damaged_files_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, damage: str) -> None:
    works(tmp_path)
    path, seen = tmp_path / name, trainings(monkeypatch)
    content = path.read_bytes()
    if damage == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "delete":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    works(tmp_path)
    # The manifest itself may come by a link, its words are checked; the arrays may not.
    assert len(seen) == (0 if (damage, name) == ("link", MANIFEST) else 1)
    assert load_clustering(tmp_path, FakeSnapshot(KEYS)) is not None


def test_a_copied_folder_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert load_clustering(tmp_path / "a", FakeSnapshot(KEYS)) is not None
    assert load_clustering(tmp_path / "b", FakeSnapshot(KEYS)) is None
    seen = trainings(monkeypatch)
    works(tmp_path / "b")
    assert len(seen) == 1


def test_other_keys_epoch_or_faiss_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works(tmp_path)
    assert load_clustering(tmp_path, FakeSnapshot(KEYS)) is not None
    assert load_clustering(tmp_path, FakeSnapshot(KEYS, epoch=1)) is None
    assert load_clustering(tmp_path, FakeSnapshot(KEYS[:1000])) is None
    assert load_clustering(tmp_path, FakeSnapshot(KEYS[::-1])) is None
    monkeypatch.setattr(faiss_module.load_faiss(), "__version__", "0.1")
    assert load_clustering(tmp_path, FakeSnapshot(KEYS)) is None


@pytest.mark.parametrize("nlist", [0, -1, 10**9, "3", None, 1.5])
def test_hostile_manifest(tmp_path: Path, nlist: object) -> None:
    works(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_bytes())
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "nlist": nlist}))
    assert load_clustering(tmp_path, FakeSnapshot(KEYS)) is None
    for text in ("[]", "null", "1", "[" * 100_000, '{"n_keys": true, "nlist": 1}'):
        (tmp_path / MANIFEST).write_text(text)
        assert load_clustering(tmp_path, FakeSnapshot(KEYS)) is None


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    works(tmp_path / "file" / "search")
    folder = tmp_path / "search"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    works(folder)  # root may write all the same
    folder.chmod(stat.S_IRWXU)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    works(tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []  # no temporary file left
    made = clustering_files.Clustering(KEYS, KEYS)
    assert clustering_files.save_clustering(tmp_path / "full", FakeSnapshot(KEYS), made) is False


def test_blas_threshold_is_put_back() -> None:
    cvar = faiss_module.load_faiss().cvar
    before = cvar.distance_compute_blas_threshold
    with faiss_module.small_batches(10), faiss_module.small_batches(20):
        assert cvar.distance_compute_blas_threshold == 60
    assert cvar.distance_compute_blas_threshold == before


def test_faiss_missing_names_both_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(faiss_module.FaissMissing, match=r"\[cpu\].*\[gpu\]"):
        Matcher(FakeSnapshot(KEYS), gamma=0.65)
