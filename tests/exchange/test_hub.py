"""Databases on a hub: the real client against one on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import _cache_assets

from helpers.commands import digest
from helpers.exchanged import EDITOR, PlacedEditor, assert_equal, fingerprint, rows
from helpers.fake_hub import TOKEN, FakeHub
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import NeuralDBError, StoreError
from neuraldb_faiss.exchange import hub as ours
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, copy, verify

REPO = "someone/facts"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """The client's settings, as HF_ENDPOINT, HF_HOME and HF_TOKEN would have made them at its import."""
    with FakeHub().serve() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(tmp_path / "home" / "assets"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, for the real hub
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield served


def contents(folder: Path) -> dict[str, str]:
    return {name: hash for name, hash in digest(folder).items() if not name.startswith(".cache")}


# ---- saved


def test_a_saved_copy_is_clean_and_equal(rich: Store, quick_path: Path) -> None:
    (rich.root / "search").mkdir()
    (rich.root / "search" / "ivf.json").write_text("{}")
    (rich.root / "notes.txt").write_text("mine")
    with rich.write("staged") as tx:  # a build that was killed
        tx.resume("plan")
        tx.stage(*_one_entry(), [])
        db = NeuralDB(rich)
        folder = db.save_pretrained(quick_path / "new" / "copy")
    assert (folder, sorted(path.name for path in folder.iterdir())) == (
        quick_path / "new" / "copy", ["README.md", "catalog.sqlite", "segments"],
    )  # fmt: skip
    with NeuralDB.from_pretrained(folder) as saved:
        assert_equal(rich, saved._store)
        assert saved.verify(deep=True) == [] and saved.history() == db.history()
        assert {path.name for path in (folder / "segments").iterdir()} == {
            record.name for record in rich.catalog.segments(4)
        }
        assert saved._store.catalog.segments(None) == []
    assert list(quick_path.glob("new/*.tmp")) == []


def _one_entry() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    keys, rows = np.ones((1, 12), np.float32), np.zeros(1, np.int32)
    return keys, rows, rows - 1, np.ones((1, 8), np.float32)


def test_deleted_rows_leave_nothing_in_a_copy(rich: Store, quick_path: Path) -> None:
    rich.catalog.all("PRAGMA secure_delete = OFF")  # the default of most builds of SQLite
    compact(rich)
    for fact in [fact for fact in rich.catalog.facts(rich.generation) if fact.subject == "Lima"]:
        changes.remove(rich, [fact])
    compact(rich)
    assert b"Secretish" in rich.catalog.path.read_bytes()
    copied = copy(rich, quick_path / "copy")
    data = copied.catalog.path.read_bytes()
    assert b"Secretish" not in data and b"Latin" not in data
    assert verify(copied, deep=True) == []


def test_a_copy_is_of_the_last_commit_while_a_writer_works(rich: Store, quick_path: Path) -> None:
    other = Store(rich.root)
    with rich.write("add") as tx, rich.catalog.transaction():
        tx.catalog.run("DELETE FROM facts")  # not committed
        copied = copy(other, quick_path / "copy")
        tx.catalog.run("ROLLBACK")
        tx.catalog.run("BEGIN")
    assert_equal(rich, copied)


def test_a_compaction_amid_a_copy_starts_it_again(
    rich: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying = import_module("neuraldb_faiss.store.copy")  # its name in the package is that of the function
    real, reader = copying._copy_segments, Store(rich.root)

    def after_a_compaction(store: Store, *arguments: Any) -> None:
        if store.generation == 4:
            compact(rich)
        real(store, *arguments)

    monkeypatch.setattr(copying, "_copy_segments", after_a_compaction)
    copied = copy(reader, quick_path / "copy")
    assert copied.generation == 5 and verify(copied, deep=True) == []


def test_a_missing_array_or_a_taken_folder_is_refused(rich: Store, quick_path: Path) -> None:
    (quick_path / "taken").mkdir()
    (quick_path / "taken" / "letter").write_text("mine")
    with pytest.raises(StoreError, match="taken is there already: name a new folder"):
        NeuralDB(rich).save_pretrained(quick_path / "taken")
    assert (quick_path / "taken" / "letter").read_text() == "mine"
    (rich.root / "segments" / "00000002" / "keys.npy").unlink()
    with pytest.raises(StoreError, match="keys.npy is missing"):
        copy(rich, quick_path / "copy")
    assert not (quick_path / "copy").exists() and not list(quick_path.glob("*.tmp"))


def test_links_out_of_a_folder_are_not_copied(rich: Store, quick_path: Path) -> None:
    path = rich.root / "segments" / "00000002" / "keys.npy"
    shutil.move(path, quick_path / "secret")
    path.symlink_to(quick_path / "secret")
    with pytest.raises(StoreError, match="outside the database"):
        copy(rich, quick_path / "copy")
    assert not (quick_path / "copy").exists()


def test_the_card_says_what_it_is(rich: Store, quick_path: Path) -> None:
    text = (NeuralDB(rich).save_pretrained(quick_path / "copy", license="mit") / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "base_model": "owner/tiny-model", "library_name": "neuraldb-faiss", "license": "mit",
        "tags": ["neuraldb-faiss", "knowledge-editing", "model-editing", "faiss"],
    }  # fmt: skip
    for line in ("| layer | 3 |", "| facts | 5 |", "| gate γ | 0.65 |", "| `a` | 2 |", "| `b` | 2 |", "| `c` | 1 |",
                 "| base model | [owner/tiny-model](https://huggingface.co/owner/tiny-model) |",
                 "NeuralDB.from_pretrained('copy')"):  # fmt: skip
        assert line in card.text, card.text


def test_texts_of_strangers_do_not_take_a_card_apart(quick_path: Path) -> None:
    class Local(PlacedEditor):
        def settings(self):  # type: ignore[no-untyped-def]
            return replace(super().settings(), model_name="/home/me/model")

    harm = "`x` | <script>\r---\rlicense: evil"
    store = changes.build([Fact("Oslo", "In {} is", "Peru", source=harm)], Local(fingerprint()), quick_path / "db")
    text = (NeuralDB(store).save_pretrained(quick_path / "copy") / "README.md").read_text()
    assert sorted(ModelCard(text).data.to_dict()) == ["library_name", "tags"]
    assert "| `'x' / <script> --- license: evil` | 1 |\n" in text
    assert "/home/me" not in text and "| base model | `llama, 4 layers" in text


# ---- pushed and downloaded


def test_what_is_pushed_comes_back(hub: FakeHub, rich: Store, tmp_path: Path) -> None:
    db = NeuralDB(rich)
    saved = db.save_pretrained(tmp_path / "saved")
    url = db.push_to_hub(REPO, private=True, commit_message="first", license="mit")
    assert url == f"{hub.url}/{REPO}/commit/{hub.branches[REPO]['main']}"
    assert (hub.messages, hub.private[REPO]) == (["first"], True)
    files = hub.files(REPO)
    assert sorted(set(files) - {".gitattributes"}) == sorted(contents(saved))
    assert b"license: mit" in files["README.md"]
    with NeuralDB.from_pretrained(REPO) as back:
        assert back.verify(deep=True) == []
        assert_equal(rich, back._store)
        mine, theirs = contents(saved), contents(back.path)
        assert {name: mine[name] for name in mine if name != "README.md"} == {
            name: theirs[name] for name in theirs if name != "README.md"
        }
        assert back.path == tmp_path / "home/assets/neuraldb-faiss/someone--facts" / hub.branches[REPO]["main"]
        assert not any(path.is_symlink() for path in back.path.rglob("*"))
        with pytest.raises(StoreError, match="opened for reading"):
            back.compact()
    assert not list(rich.root.parent.glob(".push-*"))


def test_a_second_push_takes_away_what_is_gone(hub: FakeHub, rich: Store) -> None:
    db = NeuralDB(rich)
    db.push_to_hub(REPO)
    foreign = {"search/ivf.json": b"{}", "writer.lock": b"", "LICENSE": b"mine", "data/notes.txt": b"mine"}
    hub.commit(REPO, "main", {**hub.files(REPO), **foreign})
    before = set(hub.files(REPO))
    db.compact()
    db.push_to_hub(REPO)
    after = set(hub.files(REPO))
    segments = {name for name in before if name.startswith("segments/")}
    assert before - after == segments | {"search/ivf.json", "writer.lock"}
    assert {name.split("/")[1] for name in after if name.startswith("segments/")} == {
        record.name for record in rich.catalog.segments(5)
    }
    assert {"LICENSE", "data/notes.txt"} <= after
    assert hub.messages[-1] == "Generation 5 of a neuraldb-faiss database"
    with NeuralDB.from_pretrained(REPO) as back:
        assert back.generation == 5 and back.verify(deep=True) == []


def test_a_push_that_crosses_another_is_refused(hub: FakeHub, rich: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ours.HfApi.create_commit

    def crossed(api, repo, **how):  # type: ignore[no-untyped-def]
        hub.commit(REPO, "main", {**hub.files(REPO), "theirs": b""})
        return real(api, repo, **how)

    monkeypatch.setattr(ours.HfApi, "create_commit", crossed)
    with pytest.raises(StoreError, match="the hub refused 'someone/facts'.*412"):
        NeuralDB(rich).push_to_hub(REPO)
    assert sorted(hub.files(REPO)) == [".gitattributes", "theirs"]


def test_only_a_databases_own_files_are_taken(hub: FakeHub, rich: Store) -> None:
    NeuralDB(rich).push_to_hub(REPO)
    foreign = dict.fromkeys((
        "search/ivf.centroids.npy", "search/ivf.json", "evil.py", "catalog.sqlite-journal", "segments/x/keys.npy",
        "segments/00000001/evil.py", "segments/../../evil.npy", "segments/00000001/../../../keys.npy",
        "quarantine/00000001/keys.npy",
    ), b"evil")  # fmt: skip
    hub.commit(REPO, "main", {**hub.files(REPO), **foreign})
    with NeuralDB.from_pretrained(REPO) as back:
        assert back.verify(deep=True) == []
        taken = set(contents(back.path))
    assert not taken & set(foreign)
    assert not any("evil" in request or "search" in request for request in hub.requests)


def test_revisions_have_folders_of_their_own(hub: FakeHub, rich: Store, tmp_path: Path) -> None:
    db = NeuralDB(rich)
    db.push_to_hub(REPO)
    first = hub.branches[REPO]["main"]
    db.compact()
    db.push_to_hub(REPO, revision="small")
    assert hub.branches[REPO]["main"] == first
    with NeuralDB.from_pretrained(REPO) as main, NeuralDB.from_pretrained(REPO, revision="small") as small:
        assert (main.generation, small.generation) == (4, 5)
        assert main.path.name == first and main.path.parent == small.path.parent
    hub.commit(REPO, "main", hub.files(REPO, "small"))
    with NeuralDB.from_pretrained(REPO) as moved, NeuralDB.from_pretrained(REPO, revision=first) as old:
        assert (moved.generation, old.generation, old.path.name) == (5, 4, first)
    with pytest.raises(StoreError, match="'someone/facts' has no such revision"):
        NeuralDB.from_pretrained(REPO, revision="missing")


def test_offline_what_was_downloaded_opens(hub: FakeHub, rich: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    db = NeuralDB(rich)
    db.push_to_hub(REPO)
    with NeuralDB.from_pretrained(REPO) as back:
        path = back.path
    number = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for revision in (None, "main", hub.branches[REPO]["main"]):
        with NeuralDB.from_pretrained(REPO, revision=revision) as back:
            assert back.path == path
    for repo, revision in (("someone/else", None), (REPO, "other"), (REPO, "0" * 40)):
        with pytest.raises(StoreError, match=f"cannot be reached .*HF_HUB_OFFLINE.*{repo!r} was not downloaded before"):
            NeuralDB.from_pretrained(repo, revision=revision)
    with pytest.raises(StoreError, match="the hub cannot be reached"):
        db.push_to_hub(REPO)
    assert len(hub.requests) == number


def test_a_download_that_broke_off_goes_on(hub: FakeHub, rich: Store) -> None:
    NeuralDB(rich).push_to_hub(REPO)
    hub.broken.add("segments/00000002/keys.npy")
    with pytest.raises(StoreError, match="the hub refused 'someone/facts'"):
        NeuralDB.from_pretrained(REPO)
    first = downloads(hub) - hub.broken
    hub.broken.clear()
    hub.requests.clear()
    with NeuralDB.from_pretrained(REPO) as back:
        assert back.verify(deep=True) == [] and len(back) == 5
    second = downloads(hub)
    assert first and not first & second and "segments/00000002/keys.npy" in second


def downloads(hub: FakeHub) -> set[str]:
    return {one.partition("/resolve/")[2][41:] for one in hub.requests if one.startswith(f"GET /{REPO}/resolve/")}


def test_a_missing_or_private_repository_is_refused(hub: FakeHub, rich: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    message = "no folder and no repository .*, or it is private: check the name, or log in"
    with pytest.raises(StoreError, match=message):
        NeuralDB.from_pretrained("someone/missing")
    NeuralDB(rich).push_to_hub(REPO, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(StoreError, match=message):
        NeuralDB.from_pretrained(REPO)
    with pytest.raises(StoreError, match="the hub refused 'someone/new'"):
        NeuralDB(rich).push_to_hub("someone/new")
    with NeuralDB.from_pretrained(REPO, token=TOKEN) as back:
        assert len(back) == 5


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "/missing/too", "a--b/c", ""])
def test_what_is_neither_folder_nor_name_is_refused(hub: FakeHub, rich: Store, name: str) -> None:
    for call in (lambda: NeuralDB.from_pretrained(name), lambda: NeuralDB(rich).push_to_hub(name)):
        with pytest.raises(NeuralDBError, match="is neither a folder nor a repository's name|no database at"):
            call()
    assert not hub.requests


def test_a_repository_without_a_database_is_refused(hub: FakeHub) -> None:
    hub.create(REPO)
    with pytest.raises(StoreError, match=r"'someone/facts' holds no database \(no catalog.sqlite at"):
        NeuralDB.from_pretrained(REPO)


def test_a_folder_of_ones_own_is_never_overwritten(hub: FakeHub, rich: Store, tmp_path: Path) -> None:
    NeuralDB(rich).push_to_hub(REPO)
    mine = tmp_path / "mine"
    with NeuralDB.from_pretrained(REPO, local_dir=mine, cache_dir=tmp_path / "cache") as back:
        assert back.path == mine
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine"]
    changed = Store(mine, "rw")
    changes.add(changed, EDITOR, [Fact("Bern", "In {} is", "Peru")])
    changed.close()
    with NeuralDB.from_pretrained(REPO, local_dir=mine) as again:  # the same commit: what was made of it stays
        assert (again.generation, len(again)) == (5, 6) and again.verify(deep=True) == []
    NeuralDB(rich).compact()
    NeuralDB(rich).push_to_hub(REPO)
    before = digest(mine)
    with pytest.raises(StoreError, match="mine holds commit .{7} of a database, this is .{7}: name a new folder"):
        NeuralDB.from_pretrained(REPO, local_dir=mine)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter").write_text("mine")
    with pytest.raises(StoreError, match="other holds other files"):
        NeuralDB.from_pretrained(REPO, local_dir=tmp_path / "other")
    assert digest(mine) == before and os.listdir(tmp_path / "other") == ["letter"]


SCRIPT = """
import json, sys
from neuraldb_faiss import NeuralDB
with NeuralDB.from_pretrained(sys.argv[1]) as db:
    print(json.dumps([str(db.path), len(db)]))
"""


def test_the_clients_environment_counts(hub: FakeHub, rich: Store, tmp_path: Path) -> None:
    NeuralDB(rich).push_to_hub(REPO, private=True)
    shown = []
    for offline in ("0", "1"):
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN,
                       "HF_HUB_OFFLINE": offline, "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        done = subprocess.run([sys.executable, "-c", SCRIPT, REPO], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        shown.append(json.loads(done.stdout))
    folder = tmp_path / "hf" / "assets" / "neuraldb-faiss" / "someone--facts" / hub.branches[REPO]["main"]
    assert shown == [[str(folder), 5]] * 2
    store = Store(folder)
    assert rows(store) == rows(rich)
    store.close()
