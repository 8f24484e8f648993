"""JSON lines: facts as they were said, which a build or an add reads back."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.exchanged import EDITOR, rows
from neuraldb_faiss.edits import changes
from neuraldb_faiss.errors import StoreError
from neuraldb_faiss.exchange import export
from neuraldb_faiss.facts import Fact, fold, read_facts
from neuraldb_faiss.store import Store, compact, files

SAID = ("id", "identity", "subject", "prompt", "target", "target_true", "relation", "sources", "metadata")


def said(store: Store) -> list[tuple[object, ...]]:
    """What was said of each fact, once, in order."""
    told = {row["identity"]: tuple(row[name] for name in SAID) for row in reversed(rows(store))}
    return sorted(told.values())


def test_a_build_from_it_says_the_same(rich: Store, quick_path: Path) -> None:
    out = quick_path / "facts.jsonl"
    done = export(rich, out)
    assert (done.generation, done.facts, done.bytes) == (4, 5, out.stat().st_size)
    again = changes.build(fold(read_facts(out)).facts, EDITOR, quick_path / "again")
    assert said(again) == said(rich)
    assert {row["subject"]: row["sources"] for row in rows(again)} == {
        "Oslo": ("a", "b"), "Marie Curie": ("a",), "Lima": ("c",), "Eiffel Tower": ("b",),
    }  # fmt: skip
    assert [row["sources"] for row in rows(again) if row["target"] == "Rome"] == [()]  # not the file's name


def test_a_line_is_what_a_user_would_write(quick_path: Path, rich: Store) -> None:
    out = io.BytesIO()
    export(rich, out, at=1)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[0] == {
        "subject": "Oslo", "prompt": "{} is in", "target": "Peru", "source": "a",
        "metadata": {"aliases": ["Kristiania", "Ослo"], "case_id": 7},
    }  # fmt: skip
    assert lines[2]["id"] == "curie"
    assert lines[3]["source"] == "a\nwith, comma"
    assert lines[5] == {
        "id": "tower", "subject": "Eiffel Tower", "prompt": "The {} stands in", "target": "Rome",
        "target_true": "Paris", "relation": "P276", "source": "",
    }  # fmt: skip
    assert [line["target"] for line in lines] == ["Peru", "Tokyo", "Nice", "Dutch", "Secretish", "Rome"]
    assert "Ослo" in out.getvalue().decode()


def test_facts_can_be_saved_where_arrays_are_damaged(rich: Store) -> None:
    (rich.root / "segments" / "00000001" / "keys.npy").write_bytes(b"")
    out = io.BytesIO()
    assert export(rich, out).facts == len(out.getvalue().splitlines()) == 5
    with pytest.raises(StoreError, match="keys.npy"):
        export(rich, io.BytesIO(), "safetensors")


@pytest.mark.parametrize("format", ["jsonl", "safetensors"])
def test_a_file_that_is_there_stays_as_it_is(rich: Store, quick_path: Path, format: str) -> None:
    out = quick_path / "taken"
    out.write_text("mine")
    with pytest.raises(StoreError, match="taken is there already"):
        export(rich, out, format)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("format", ["jsonl", "safetensors"])
@pytest.mark.parametrize("function", ["write", "sync", "rename", "open_new"])
def test_a_failing_disk_leaves_nothing(
    rich: Store, quick_path: Path, format: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(path.name for path in quick_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(files, function, full)
        with pytest.raises(StoreError, match="facts.out: No space left on device; nothing was exported"):
            export(rich, quick_path / "facts.out", format)
    assert sorted(path.name for path in quick_path.iterdir()) == before
    assert export(rich, quick_path / "facts.out", format).facts == 5


@pytest.mark.parametrize("format", ["jsonl", "safetensors"])
def test_a_compaction_meanwhile_is_told(
    rich: Store, quick_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Facts that ended since the generation that is exported may be missing from what was read."""
    real = files.write

    def write(*arguments: Any) -> None:
        monkeypatch.setattr(files, "write", real)
        compact(rich)
        real(*arguments)

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(StoreError, match="was compacted while generation 2 was exported: export again"):
        export(rich, quick_path / "facts", format, at=2)
    assert list(quick_path.glob("*facts*")) == []


def test_an_unknown_format_or_generation_is_refused(rich: Store, quick_path: Path) -> None:
    with pytest.raises(StoreError, match="'parquet'; choose one of jsonl, safetensors"):
        export(rich, quick_path / "out", "parquet")
    with pytest.raises(StoreError, match="generation 9 does not exist"):
        export(rich, quick_path / "out", at=9)
    assert not (quick_path / "out").exists()


def test_several_sources_are_removed_by_each_name(quick_path: Path) -> None:
    store = changes.build([Fact("Oslo", "In {} is", "Peru", source="x\ny")], EDITOR, quick_path / "db")
    assert [len(list(store.catalog.facts(1, source=name))) for name in ("x", "y", "x\ny")] == [1, 1, 0]
