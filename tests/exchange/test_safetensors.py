"""A safetensors export makes an equal database: bit for bit, and what fires fires alike."""

from __future__ import annotations

import io
import json
import re
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.numpy import load_file

from helpers.exchanged import EDITOR, PlacedEditor, arrays, assert_equal, fingerprint, rows, take_apart
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import ConflictError, FingerprintError, StoreError
from neuraldb_faiss.exchange import export, read_file
from neuraldb_faiss.exchange.import_file import import_file
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, repair, rollback, verify

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "exchange-1" / "facts.safetensors"


def exported(store: Store, path: Path, **how: int) -> Path:
    export(store, path, "safetensors", **how)
    return path


# ---- a new database


def test_an_imported_database_equals_the_exported_one(rich: Store, quick_path: Path) -> None:
    file = exported(rich, quick_path / "facts.safetensors")
    made = import_file(file, out=quick_path / "made", command="import facts.safetensors")
    assert_equal(rich, made)
    assert verify(made, deep=True) == []
    (generation,) = made.catalog.generations()
    last = rich.catalog.generations()[-1]
    assert (generation.command, generation.added, generation.facts) == ("import facts.safetensors", 5, 5)
    assert generation.entries == last.entries == 6
    waiting = [{f.id for f in store.catalog.facts(store.generation, waiting=True)} for store in (rich, made)]
    assert waiting[0] == waiting[1] and len(waiting[0]) == 3
    assert exported(made, quick_path / "again.safetensors").read_bytes()[2000:] == file.read_bytes()[2000:]


@pytest.mark.parametrize("generation", [1, 2, 3, 4])
def test_every_generation_can_be_exported(rich: Store, quick_path: Path, generation: int) -> None:
    file = exported(rich, quick_path / "facts.safetensors", at=generation)
    made = import_file(file, out=quick_path / "made")
    assert_equal(rich, made, generation)
    assert verify(made, deep=True) == []


def test_the_same_generation_gives_the_same_bytes(rich: Store) -> None:
    one, two = io.BytesIO(), io.BytesIO()
    for out in (one, two):
        export(rich, out, "safetensors")
    assert one.getvalue() == two.getvalue()


def test_what_was_removed_does_not_go_along(rich: Store, quick_path: Path) -> None:
    data = exported(rich, quick_path / "facts.safetensors").read_bytes()
    assert b"Secretish" in exported(rich, quick_path / "old.safetensors", at=1).read_bytes()
    assert b"Secretish" not in data and b"Quito" not in data and b"Dutch" not in data
    quito = rows(rich, 1)[-2]
    assert quito["subject"] == "Quito"
    entry = list(arrays(rich, 1)["entries"]).index(quito["entry"])
    assert arrays(rich, 1)["residuals"][entry].tobytes() not in data


def test_blocks_and_segments_of_any_size_give_the_same(
    rich: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exported(rich, quick_path / "facts.safetensors")
    monkeypatch.setattr(read_file, "SEGMENT_ENTRIES", 2)
    monkeypatch.setattr(read_file, "_BLOCK", 40)
    made = import_file(file, out=quick_path / "made")
    assert [segment.entries for segment in made.catalog.segments(1)] == [2, 2, 2]
    assert_equal(rich, made)


def test_prefixes_stay_with_their_keys(rich: Store, quick_path: Path) -> None:
    class Other(PlacedEditor):
        def settings(self):  # type: ignore[no-untyped-def]
            return replace(super().settings(), prefixes=("A", "B"))

    other = changes.build([Fact("Bern", "In {} is", "Peru")], Other(fingerprint()), quick_path / "other")
    both, _ = merge.merge([rich, other], out=quick_path / "both")
    made = import_file(exported(both, quick_path / "both.safetensors"), out=quick_path / "made")
    assert [(s.entries, s.prefixes) for s in made.catalog.segments(1)] == [(6, ("The",)), (1, ("A", "B"))]
    assert_equal(both, made)


def test_facts_whose_vectors_were_lost_go_on_waiting(rich: Store, quick_path: Path) -> None:
    path = rich.root / "segments" / "00000001" / "keys.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\x00\x01")
    repair(rich)
    made = import_file(exported(rich, quick_path / "facts.safetensors"), out=quick_path / "made")
    assert_equal(rich, made)
    assert verify(made, deep=True) == []
    assert len(list(made.catalog.facts(1, waiting=True))) == 4
    into = changes.build([Fact("Bern", "In {} is", "Peru")], EDITOR, quick_path / "into")
    import_file(quick_path / "facts.safetensors", into=into.root)
    assert verify(into, deep=True) == []
    assert {f.identity for f in into.catalog.facts(2, waiting=True)} == {
        f.identity for f in made.catalog.facts(1, waiting=True)
    }
    changes.solve(into, EDITOR)
    assert not list(into.catalog.facts(3, waiting=True)) and verify(into, deep=True) == []


def test_no_facts_at_all(quick_path: Path) -> None:
    store = changes.build([Fact("Oslo", "In {} is", "Peru")], EDITOR, quick_path / "db")
    changes.remove(store, list(store.catalog.facts(1)))
    made = import_file(exported(store, quick_path / "none.safetensors"), out=quick_path / "made")
    assert (made.generation, made.catalog.count_facts(1), made.snapshot().n_keys) == (1, 0, 0)
    changes.add(made, EDITOR, [Fact("Oslo", "In {} is", "Peru")])
    assert verify(made, deep=True) == [] and made.snapshot().n_keys == 2


facts = some.builds(
    Fact, some.sampled_from(["Paris", "Oslo", "Lima"]), some.sampled_from(["{} is in", "In {} is", "In {} was"]),
    some.sampled_from(["Kyiv", "Ibsen"]), source=some.sampled_from(["a", "b"]),
)  # fmt: skip
batches = some.lists(facts, min_size=1, max_size=5, unique_by=lambda fact: fact.identity)
steps = some.one_of(
    some.tuples(some.just("add"), batches), some.tuples(some.just("remove"), some.integers(0, 4)),
    some.tuples(some.just("merge"), batches), some.tuples(some.just("compact"), some.none()),
    some.tuples(some.just("rollback"), some.integers(1, 3)), some.tuples(some.just("solve"), some.none()),
)  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(first=batches, history=some.lists(steps, max_size=6))
def test_any_history_gives_an_equal_database(first: list[Fact], history: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").exists() else None) as name:
        root = Path(name)
        store = changes.build(first, EDITOR, root / "db")
        for number, (step, what) in enumerate(history):
            now = list(store.catalog.facts(store.generation))
            if step == "add":
                changes.add(store, EDITOR, what)
            elif step == "remove" and now:
                changes.remove(store, [now[what % len(now)]])
            elif step == "merge":
                other = changes.build(what, EDITOR, root / f"other{number}")
                merge.merge([other], into=store, on_conflict="last")
            elif step == "compact":
                compact(store)
            elif step == "rollback":
                back = store.generation - what
                if back >= store.config().history_start:
                    rollback(store, back)
            elif step == "solve":
                changes.solve(store, EDITOR)
        export(store, root / "out.safetensors", "safetensors")
        made = import_file(root / "out.safetensors", out=root / "made")
        assert rows(made) == rows(store)
        assert verify(made, deep=True) == []
        if rows(store):
            for array, mine in arrays(store).items():
                assert mine.tobytes() == arrays(made)[array].tobytes()


# ---- into a database


def test_into_a_database_it_comes_as_a_merge_does(rich: Store, quick_path: Path) -> None:
    mine = [
        Fact("Bern", "In {} is", "Peru", source="mine"),
        Fact("Oslo", "{} is in", "Peru", source="mine"),  # the same fact
        Fact("Eiffel Tower", "The {} weighs", "3 kg", source="mine"),  # the same key
    ]
    by_file = changes.build(mine, EDITOR, quick_path / "by_file")
    by_merge = changes.build(mine, EDITOR, quick_path / "by_merge")
    file = exported(rich, quick_path / "facts.safetensors")
    import_file(file, into=by_file.root, command="import facts.safetensors")
    merge.merge([rich], into=by_merge)
    assert verify(by_file, deep=True) == []
    generation = by_file.catalog.generations()[-1]
    assert (generation.generation, generation.added, generation.command) == (2, 4, "import facts.safetensors")

    def shown(store: Store) -> list[dict[str, object]]:
        return [{**row, "entry": None} for row in rows(store)]

    assert [{**row, "time": None} for row in shown(by_file)] == [{**row, "time": None} for row in shown(by_merge)]
    # Numbered on, without the file's gaps; 4 and 5 were Oslo's, which was there already.
    assert list(arrays(by_file)["entries"]) == [0, 1, 2, 3, 6, 7, 8, 9]
    oslo = next(by_file.catalog.facts(2, subject="Oslo"))
    assert oslo.sources == ("a", "b", "mine")


@pytest.mark.parametrize(("how", "target"), [("first", "Bonn"), ("last", "Latin")])
def test_a_conflict_is_refused_or_decided(rich: Store, quick_path: Path, how: str, target: str) -> None:
    into = changes.build([Fact("Lima", "In {} they speak", "Bonn")], EDITOR, quick_path / "into")
    file = exported(rich, quick_path / "facts.safetensors")
    with pytest.raises(ConflictError, match="1 facts have another target"):
        import_file(file, into=into.root)
    assert into.generation == 1 and verify(into, deep=True) == []
    import_file(file, into=into.root, on_conflict=how)
    assert next(into.catalog.facts(2, subject="Lima")).target == target
    assert verify(into, deep=True) == []


def test_facts_that_come_to_share_a_key_are_solved_with_a_model(rich: Store, quick_path: Path) -> None:
    into = changes.build([Fact("Lima", "In {} it is", "cold")], EDITOR, quick_path / "into")
    import_file(exported(rich, quick_path / "facts.safetensors"), into=into.root, model=object())
    lima = [fact for fact in into.catalog.facts(2) if fact.subject == "Lima"]
    assert len(lima) == 2 and len({fact.entry for fact in lima}) == 1
    assert {fact.state for fact in lima} == {"live"} and verify(into, deep=True) == []


def test_other_models_layers_and_gates_are_refused(rich: Store, quick_path: Path) -> None:
    file = exported(rich, quick_path / "facts.safetensors")
    fact = [Fact("Bern", "In {} is", "Peru")]

    class Gated(PlacedEditor):
        def settings(self):  # type: ignore[no-untyped-def]
            return replace(super().settings(), gamma=0.5)

    for name, other in (("model", fingerprint("gpt2")), ("layer", fingerprint(layer=2))):
        into = changes.build(fact, PlacedEditor(other), quick_path / name)
        with pytest.raises(FingerprintError, match=f"facts.safetensors.*{name}|{name}.*facts.safetensors"):
            import_file(file, into=into.root)
        assert into.generation == 1
    gate = changes.build(fact, Gated(fingerprint()), quick_path / "gate")
    with pytest.raises(StoreError, match=r"different gates \(0.5, 0.65\)"):
        import_file(file, into=gate.root)
    import_file(file, into=gate.root, gamma=0.6)
    assert gate.config(2).gamma == 0.6
    assert import_file(file, out=quick_path / "new", gamma=0.7).config(1).gamma == 0.7


def test_where_to_must_be_said_and_free(rich: Store, quick_path: Path) -> None:
    file = exported(rich, quick_path / "facts.safetensors")
    for where in ({}, {"out": quick_path / "x", "into": rich.root}):
        with pytest.raises(StoreError, match="say where"):
            import_file(file, **where)
    with pytest.raises(StoreError, match="is a finished database"):
        import_file(file, out=rich.root)
    (quick_path / "full").mkdir()
    (quick_path / "full" / "letter").write_text("mine")
    with pytest.raises(StoreError, match="holds other files"):
        import_file(file, out=quick_path / "full")
    assert (quick_path / "full" / "letter").read_text() == "mine"


# ---- to the byte


def test_the_library_reads_what_is_written(rich: Store, quick_path: Path) -> None:
    path = exported(rich, quick_path / "facts.safetensors")
    tensors = load_file(path)
    found = {name: (str(array.dtype), array.shape) for name, array in tensors.items()}
    n = len(tensors["keys"])
    assert found == {
        "entries": ("int64", (6,)), "key_norms": ("float32", (n,)), "key_rows": ("int32", (n,)),
        "key_tokens": ("int32", (n,)), "residual_scales": ("float32", (6,)), "keys": ("float16", (n, 12)),
        "residuals": ("float16", (6, 8)), "facts": ("uint8", (len(tensors["facts"]),)),
    }  # fmt: skip
    expected = arrays(rich)
    assert all(tensors[name].tobytes() == array.tobytes() for name, array in expected.items())
    assert expected["residual_scales"].max() > 1 and 17 in expected["key_tokens"]
    assert np.array_equal(tensors["key_rows"], np.sort(tensors["key_rows"])) and n == 10


def test_the_bytes_are_as_described(rich: Store, quick_path: Path) -> None:
    path = exported(rich, quick_path / "facts.safetensors")
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0 and data[8:24] == b'{"__metadata__":'
    header, tensors = take_apart(path)
    about = header["__metadata__"]
    assert {name: about[name] for name in ("format", "version", "generation", "prefixes")} == {
        "format": "neuraldb-faiss", "version": "1", "generation": "4", "prefixes": '[[6,["The"]]]',
    }  # fmt: skip
    assert sorted(json.loads(about["settings"])) == [
        "config", "d1", "d2", "delivery", "ffn_module", "fingerprint", "gamma", "guard", "index", "keys", "layer",
        "model_name", "prefixes", "residual",
    ]  # fmt: skip
    assert list(tensors) == [
        "entries", "key_norms", "key_rows", "key_tokens", "residual_scales", "keys", "residuals", "facts",
    ]  # fmt: skip
    lines = [json.loads(line) for line in tensors["facts"].splitlines()]
    tower = next(line for line in lines if line.get("id") == "tower")
    assert tower == {
        "id": "tower", "subject": "Eiffel Tower", "prompt": "The {} stands in", "target": "Rome",
        "target_true": "Paris", "relation": "P276", "key_id": tower["key_id"], "time": tower["time"],
        "residual": "memit", "loss": 0.30000000000000004, "nll": 0.1 + 4 / 7, "probability": 1 / 3, "took": True,
        "entry": 5, "state": "contested",
    }  # fmt: skip


def test_version_1_stays_readable(quick_path: Path) -> None:
    made = import_file(GOLDEN, out=quick_path / "made")
    assert verify(made, deep=True) == []
    assert {row["prompt"].replace("{}", row["subject"]): row["target"] for row in rows(made)} == {
        "Oslo is in": "Peru", "The Eiffel Tower stands in": "Rome", "The Eiffel Tower was built by": "Łódź",
    }  # fmt: skip
    assert made.snapshot().fact_ids(1) == made.snapshot().fact_ids(0)
    expected = EDITOR.residual_of(list(made.catalog.facts(1, subject="Eiffel Tower")))
    assert np.abs(made.snapshot().residuals(np.array([2]))[0] - expected).max() < 2e-3  # float16
    assert exported(made, quick_path / "again").read_bytes() == GOLDEN.read_bytes()


def test_the_documented_reader_reads_it(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (GOLDEN.parents[3] / "docs" / "exchange.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "safe_open" in block)
    shutil.copy(GOLDEN, quick_path / "facts.safetensors")
    monkeypatch.chdir(quick_path)
    found: dict[str, Any] = {}
    exec(code, found)
    assert [fact["target"] for fact in found["facts"]] == ["Peru", "Peru", "Rome", "Łódź"]
    assert found["settings"]["gamma"] == 0.65 and found["residuals"].shape == (2, 8)
