"""The demonstration, on a tiny model: what it shows, and what it never removes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import FACTS, Run, digest, write
from neuraldb_faiss import Fact
from neuraldb_faiss.cli import demonstration as demo

EDITS = [
    {**fact, "metadata": {"paraphrase_prompts": ["I think Paris is"], "neighborhood_prompts": ["Berlin is"]}}
    for fact in FACTS
]


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    return write(tmp_path / "edits.jsonl", EDITS)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No new processes: they take seconds each."""

    def nothing(*_: Any) -> Iterator[demo.Check]:
        return iter(())

    monkeypatch.setattr(demo, "in_new_process", nothing)


def test_demo_shows_edits_and_loses_nothing(run: Run, model: Path, edits: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = run("demo", "--facts", edits, "--model-dir", model, "--out", out)
    assert done.exit_code == 0, done.output
    shown = done.stdout
    assert "4 facts in 4 entries" in shown and "Nothing was lost" in shown
    assert shown.count("base") == shown.count("edited  ") == shown.count("neighbour  ") == 4
    assert "Eiffel Tower → Rome and Eiffel Tower → Steve  (cosine 1.000 at" in shown
    for command in ("verify", "facts", "generate"):
        assert f"$ neuraldb {command} {out}"[:98] in shown
    edits_shown = shown.splitlines()[3 : shown.splitlines().index("Now in new processes, from what is on the disk:")]
    assert max(map(len, edits_shown)) <= 100
    assert not set("\x1b\t") & set(shown)


@pytest.mark.usefixtures("alone")
def test_demo_reuses_its_database(run: Run, model: Path, edits: Path, tmp_path: Path) -> None:
    command = ("demo", "--facts", edits, "--model-dir", model, "--out", tmp_path / "demo")
    assert run(*command).exit_code == 0
    before = digest(tmp_path / "demo")
    again = run(*command)
    assert "was there already" in again.stdout and digest(tmp_path / "demo") == before
    write(edits, EDITS[:2])
    other = run(*command)
    assert other.exit_code == 0 and "2 facts" in other.stdout and "was there already" not in other.stdout


@pytest.mark.usefixtures("alone")
def test_demo_keeps_what_others_did(run: Run, model: Path, edits: Path, tmp_path: Path) -> None:
    command = ("demo", "--facts", edits, "--model-dir", model, "--out", tmp_path / "demo")
    assert run(*command).exit_code == 0
    assert run("remove", tmp_path / "demo", "--id", "paris").exit_code == 0
    before = digest(tmp_path / "demo")
    refused = run(*command)
    assert refused.exit_code == 1 and "--fresh" in refused.stderr and digest(tmp_path / "demo") == before
    assert "4 facts" in run(*command, "--fresh").stdout


@pytest.mark.usefixtures("alone")
def test_demo_leaves_other_databases_and_folders(run: Run, model: Path, edits: Path, db: Path, tmp_path: Path) -> None:
    options = ("demo", "--facts", edits, "--model-dir", model, "--out")
    before = digest(db)
    refused = run(*options, db)
    assert refused.exit_code == 1 and "not as the demo made it" in refused.stderr and digest(db) == before
    papers = tmp_path / "papers"
    papers.mkdir()
    (papers / "thesis.txt").write_text("years of work")
    for fresh in ((), ("--fresh",)):
        refused = run(*options, papers, *fresh)
        assert refused.exit_code == 1 and len(refused.stderr.strip().splitlines()) <= 2
        assert (papers / "thesis.txt").exists()


def test_demo_without_facts_says_where_to_run(run: Run, tmp_path: Path) -> None:
    refused = run("demo", "--facts", tmp_path / "none")
    assert refused.exit_code == 1 and "--facts" in refused.stderr


def test_selection_has_two_facts_of_one_subject() -> None:
    facts = [Fact(f"S{i}", "{} is", "x") for i in range(20)] + [Fact("S19", "{} was", "y")]
    chosen = demo.selection(facts, 12)
    assert len(chosen) == 12 and [fact.subject for fact in chosen][-2:] == ["S19", "S19"]
    assert demo.selection(facts[:3]) == facts[:3]


def test_the_example_facts_are_what_the_demo_needs() -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "facts.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(records) >= 24
    for record in records:
        assert record["metadata"]["paraphrase_prompts"] and record["metadata"]["neighborhood_prompts"]
    subjects = [record["subject"] for record in records]
    assert len(set(subjects)) < len(subjects)
