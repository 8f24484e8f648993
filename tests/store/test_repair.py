"""verify --repair: what is derived is dropped, damaged arrays are quarantined, nothing else is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.fake_editor import FakeEditor
from neuraldb_faiss import integrity
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.store import Store, rollback, verify
from neuraldb_faiss.store.segments import ARRAYS

EDITOR = FakeEditor()


def fact(subject: str, target: str = "Rome") -> Fact:
    return Fact(subject, "{} is in", target, source="test")


@pytest.fixture
def root(quick_path: Path) -> Path:
    """Two segments: Paris, Oslo and Lima; Quito and a dead Bonn."""
    store = changes.build([fact("Paris"), fact("Oslo"), fact("Lima")], EDITOR, quick_path / "db")
    changes.add(store, EDITOR, [fact("Quito"), fact("Bonn")])
    changes.remove(store, [f for f in store.catalog.facts(2) if f.subject == "Bonn"])
    store.close()
    return quick_path / "db"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def live(store: Store) -> dict[str, str]:
    return {f.subject: f.state for f in store.catalog.facts(store.generation)}


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.mark.parametrize("at", [20, -1], ids=["header", "data"])
@pytest.mark.parametrize("array", ARRAYS)
def test_a_damaged_array_is_quarantined_and_its_facts_wait(root: Path, array: str, at: int) -> None:
    path = root / "segments" / "00000001" / f"{array}.npy"
    flip(path, at)
    damaged = path.read_bytes()
    code, output = run("verify", root, "--repair", "--json")
    assert code == 0
    found = json.loads(output[: output.rindex("}") + 1])
    assert any("00000001" in problem["file"] for problem in found["problems"]) and found["ok"]
    assert found["quarantined"] == ["quarantine/00000001-before-4"]
    assert (root / found["quarantined"][0] / f"{array}.npy").read_bytes() == damaged
    store = Store(root, "rw")
    assert live(store) == {"Paris": "suspended", "Oslo": "suspended", "Lima": "suspended", "Quito": "live"}
    assert set(found["affected"]) == {f.id for f in store.catalog.facts(4) if f.state == "suspended"}
    assert verify(store, deep=True) == []
    changes.solve(store, EDITOR)
    assert set(live(store).values()) == {"live"} and verify(store, deep=True) == []
    matcher = Matcher(store.snapshot(), gamma=0.65)
    keys = EDITOR.make_keys([fact("Oslo")]).keys
    matches = matcher.match(keys)
    assert matches.fired.all()
    residual = store.snapshot().residuals(matches.entry_ids.numpy())[0]
    assert residual == pytest.approx(EDITOR.residual_of([fact("Oslo")]), abs=2e-3)
    store.close()


def test_a_missing_segment_is_the_same(root: Path) -> None:
    shutil.rmtree(root / "segments" / "00000002")
    done = integrity.repair(root)
    assert [f.subject for f in done.facts] == ["Quito"]
    store = Store(root, "rw")
    assert verify(store, deep=True) == []
    assert live(store)["Paris"] == "live"
    changes.solve(store, EDITOR)
    assert set(live(store).values()) == {"live"}
    assert store.catalog.generations()[-1].facts == 4
    store.close()


def test_history_ends_at_a_repair(root: Path) -> None:
    flip(root / "segments" / "00000001" / "keys.npy", -1)
    integrity.repair(root)
    store = Store(root, "rw")
    with pytest.raises(Exception, match="compacted away"):
        rollback(store, 1)
    store.close()


def test_a_whole_database_is_left_alone(root: Path) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert integrity.repair(root).generation is None
    assert run("verify", root, "--repair")[0] == 0
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_a_damaged_catalog_is_refused_and_stays(root: Path) -> None:
    data = (root / "catalog.sqlite").read_bytes()
    at = data.rindex(b"Rome")
    (root / "catalog.sqlite").write_bytes(data[:at] + b"Rune" + data[at + 4 :])
    before = (root / "catalog.sqlite").read_bytes()
    with pytest.raises(CorruptError, match="restore it from a copy"):
        integrity.repair(root)
    assert (root / "catalog.sqlite").read_bytes() == before
    code, output = run("verify", root, "--repair")
    assert code == 1 and "generation" in output and "Traceback" not in output


def test_damaged_search_files_are_named_and_dropped(root: Path) -> None:
    store = Store(root)
    Matcher(store.snapshot(), "ivf", gamma=0.65, directory=root / "search")
    assert integrity.check(store, deep=True) == []
    flip(root / "search" / "ivf.centroids.npy", -1)
    assert [p.file for p in integrity.check(store, deep=True)] == ["search/ivf.centroids.npy"]
    generation = store.generation
    assert integrity.repair(root).generation is None
    assert integrity.check(store, deep=True) == [] and store.generation == generation
    (root / "search" / "ivf.json").write_text("{")
    assert [p.file for p in integrity.check(store, deep=True)] == ["search/ivf.json"]
    store.close()


def test_repair_after_a_killed_repair(root: Path) -> None:
    """What a killed repair had put aside is put aside anew."""
    flip(root / "segments" / "00000001" / "keys.npy", -1)
    stale = root / "quarantine" / "00000001-before-4"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"")
    assert len(integrity.repair(root).facts) == 3
    assert not (stale / "half").exists()
