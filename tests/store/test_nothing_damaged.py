"""Damage is not passed on: what rewrites, copies, merges or exports compares with the catalog, and says what to do."""

from __future__ import annotations

import io
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.commands import digest
from helpers.exchanged import EDITOR
from helpers.pieces import set_piece
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import CorruptError, StoreError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.exchange.hub import save
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact, read_facts
from neuraldb_faiss.store import Store, compact, verify
from neuraldb_faiss.store.segments import ARRAYS

LATER = {"Quito": "Kyiv"}
FIRST = {"Paris": "Rome", "Oslo": "Rome", "Lima": "Rome", "Bonn": "Rome", "Riga": "Rome", "Bern": "Rome"}


def fact(subject: str, target: str = "Rome") -> Fact:
    return Fact(subject, "{} is in", target, source="test")


@pytest.fixture
def root(quick_path: Path) -> Path:
    """Two segments: six facts, of which Bern was removed; and Quito."""
    store = changes.build([fact(subject) for subject in FIRST], EDITOR, quick_path / "db")
    changes.add(store, EDITOR, [fact("Quito", "Kyiv")])
    changes.remove(store, list(store.catalog.facts(2, subject="Bern")))
    store.close()
    changes.build([fact("Rio")], EDITOR, quick_path / "other").close()
    return quick_path / "db"


def array_of(root: Path, name: str, segment: int = 1) -> Path:
    return root / "segments" / f"{segment:08d}" / f"{name}.npy"


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(bytes(data))


def sql(root: Path, statement: str) -> None:
    with closing(sqlite3.connect(root / "catalog.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()


def compacted(root: Path) -> None:
    with closing(Store(root, "rw")) as store:
        compact(store)


def exported(root: Path) -> None:
    with closing(Store(root)) as store:
        export(store, root.parent / "out.safetensors", "safetensors")


def saved(root: Path) -> None:
    with closing(Store(root)) as store:
        save(store, root.parent / "out")


def merged(root: Path, link: bool = False) -> None:
    with closing(Store(root.parent / "other")) as one, closing(Store(root)) as two:
        merge.merge([one, two], out=root.parent / "out", link=link)[0].close()


def linked(root: Path) -> None:
    merged(root, link=True)


def merged_into(root: Path) -> None:
    with closing(Store(root.parent / "other", "rw")) as target, closing(Store(root)) as source:
        merge.merge([source], into=target)


COMMANDS = [compacted, exported, saved, merged, linked, merged_into]


def everything(root: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    return digest(root), digest(root.parent / "other"), sorted(path.name for path in root.parent.iterdir())


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_is_not_passed_on(root: Path, name: str, command: Callable[[Path], None]) -> None:
    flip(array_of(root, name))
    before = everything(root)
    with pytest.raises(CorruptError) as caught:
        command(root)
    told = str(caught.value)
    assert f"segments/00000001/{name}.npy: " in told
    assert "It serves 5 facts: Paris (" in told and "Bern" not in told and "Quito" not in told
    assert f"`neuraldb verify {root} --deep --repair`" in told and "\n" not in told
    assert everything(root) == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
@pytest.mark.parametrize("at", [30, 120], ids=["type", "padding"])
def test_a_damaged_header_is_not_passed_on(root: Path, at: int, command: Callable[[Path], None]) -> None:
    flip(array_of(root, "keys"), at)
    before = everything(root)
    with pytest.raises(CorruptError, match="keys.npy: .*It serves 5 facts: Paris"):
        command(root)
    assert everything(root) == before


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_short_file_is_not_passed_on(root: Path, command: Callable[[Path], None]) -> None:
    path = array_of(root, "residuals")
    path.write_bytes(path.read_bytes()[:-5])
    before = everything(root)
    with pytest.raises(StoreError, match="residuals.npy"):
        command(root)
    assert everything(root) == before


@pytest.mark.parametrize("statement", [
    "UPDATE facts SET target = 'Romf' WHERE row = 1",
    "UPDATE facts SET metadata = '{' WHERE row = 2",
    "UPDATE entry_states SET state = 'live'",
    "UPDATE settings SET value = '[]' WHERE name = 'prefixes'",
    "DELETE FROM generations WHERE generation = 2",
])  # fmt: skip
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_a_changed_row_is_not_passed_on(root: Path, statement: str, command: Callable[[Path], None]) -> None:
    sql(root, statement)
    before = everything(root)
    with pytest.raises(CorruptError, match="catalog.sqlite: .*generation") as caught:
        command(root)
    assert f"`neuraldb export {root} --skip-bad`" in str(caught.value)
    assert everything(root) == before


@pytest.mark.parametrize("command", [merged, linked, merged_into], ids=lambda command: command.__name__)
@pytest.mark.parametrize("statement", [
    "UPDATE facts SET metadata = '{' WHERE row = 2",
    "UPDATE facts SET sources = '[1]' WHERE row = 2",
])  # fmt: skip
def test_a_merge_reads_what_it_takes_even_where_digests_fit(
    root: Path, statement: str, command: Callable[[Path], None]
) -> None:
    sql(root, statement)
    with closing(Store(root)) as store:
        for generation in (1, 2, 3):
            found = store.catalog.digest(generation)
            sql(root, f"UPDATE generations SET digest = '{found}' WHERE generation = {generation}")
    before = everything(root)
    with pytest.raises(CorruptError, match="row 2 of table facts"):
        command(root)
    assert everything(root) == before


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    return result.exit_code, result.output


@pytest.mark.parametrize("name", ["entries", "keys"])
@pytest.mark.parametrize("then", ["solve", "remove", "nothing"])
def test_going_on_without_the_damaged_facts(root: Path, name: str, then: str) -> None:
    flip(array_of(root, name))
    code, output = run("compact", root)
    assert code == 1 and "It serves 5 facts" in output and "Traceback" not in output
    assert run("export", root, "--out", root.parent / "f.safetensors")[0] == 1
    code, output = run("verify", root, "--deep", "--repair")
    assert code == 0 and "5 facts lost their vectors" in output
    expected = {"Quito": "Kyiv"} if then == "remove" else {**FIRST, **LATER}
    expected.pop("Bern", None)
    with closing(Store(root, "rw")) as store:
        waiting = list(store.catalog.facts(store.generation, waiting=True))
        assert {one.subject for one in waiting} == FIRST.keys() - {"Bern"}
        if then == "solve":
            changes.solve(store, EDITOR)
        elif then == "remove":
            changes.remove(store, waiting)
    for command in COMMANDS:
        command(root)
        shutil.rmtree(root.parent / "out", ignore_errors=True)
    import_file(root.parent / "out.safetensors", out=root.parent / "again").close()
    alone = set(LATER) if then == "nothing" else set(expected)
    for folder in (root, root.parent / "again", root.parent / "other"):
        with closing(Store(folder)) as store:
            assert verify(store, deep=True) == []
            live = list(store.catalog.facts(store.generation))
            assert {one.subject: one.target for one in live if one.subject != "Rio"} == expected
            assert {one.subject for one in live if one.state == "live"} - {"Rio"} == alone
            for one in live:
                if one.state == "live":
                    fresh = EDITOR.make_residuals([[one]])[0].residual
                    kept = store.snapshot().residuals(np.array([one.entry]))[0]
                    assert np.allclose(kept, fresh, rtol=2e-3)


def test_damage_to_what_nobody_needs_any_more_stops_nothing(root: Path) -> None:
    with closing(Store(root, "rw")) as store:
        changes.remove(store, list(store.catalog.facts(store.generation, subject="Quito")))
    flip(array_of(root, "keys", segment=2))
    exported(root)
    compacted(root)
    with closing(Store(root)) as store:
        assert verify(store, deep=True) == []


def test_an_export_to_a_stream_is_no_whole_file_where_it_fails(root: Path) -> None:
    flip(array_of(root, "residuals"))
    stream = io.BytesIO()
    with closing(Store(root)) as store, pytest.raises(CorruptError, match="residuals.npy"):
        export(store, stream, "safetensors")
    path = root.parent / "part.safetensors"
    path.write_bytes(stream.getvalue())
    with pytest.raises(CorruptError, match="no whole safetensors file"):
        import_file(path, out=root.parent / "out")


def test_texts_can_be_saved_where_the_catalog_is_damaged(root: Path) -> None:
    sql(root, "UPDATE facts SET metadata = '{' WHERE subject = 'Oslo'")
    assert run("export", root)[0] == 1
    code, output = run("export", root, "--skip-bad", "--out", root.parent / "facts.jsonl")
    assert code == 0
    assert "of table facts: Expecting property name" in output and "5 facts of generation 3" in output
    found = {one.subject: one.target for one in read_facts(root.parent / "facts.jsonl")}
    assert found == {name: target for name, target in {**FIRST, **LATER}.items() if name not in ("Oslo", "Bern")}
    assert run("export", root, "--skip-bad", "--format", "safetensors", "--out", root.parent / "x")[0] == 2


def test_a_rebuild_takes_no_changed_texts(root: Path) -> None:
    sql(root, "UPDATE facts SET target = 'Romf' WHERE row = 1")
    with NeuralDB.open(root) as db, pytest.raises(CorruptError, match="rows of generation 1 changed"):
        db.rebuild(root.parent / "out", None, None)


def test_a_staged_piece_that_was_damaged_is_not_published(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_piece(monkeypatch, 16)
    facts = [fact(f"City {number}") for number in range(40)]
    root = quick_path / "db"

    def stop(progress: Progress) -> None:
        if progress.done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        changes.build(facts, EDITOR, root, report=stop)
    flip(array_of(root, "residuals"))
    with pytest.raises(CorruptError, match="residuals.npy: .*run the same command again"):
        changes.build(facts, EDITOR, root)
    with closing(changes.build(facts, EDITOR, root)) as store:
        assert verify(store, deep=True) == []
        assert store.catalog.count_facts(1) == 40
        one = next(store.catalog.facts(1))
        kept = store.snapshot().residuals(np.array([one.entry]))[0]
        assert np.allclose(kept, EDITOR.make_residuals([[one]])[0].residual, rtol=2e-3)
