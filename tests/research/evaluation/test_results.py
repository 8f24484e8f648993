"""Folders of results become pages: every one that the repository ships, whole and with nothing cut off."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from neuraldb_faiss.cli.commands.report import report
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.evaluation.results import WIDE, Table, figure_plots, read_results

RESULTS = Path(__file__).resolve().parents[3] / "docs" / "results"
FOLDERS = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_that_is_shipped_becomes_a_page(name: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    done = CliRunner().invoke(report, [str(RESULTS / name), "--out", str(out)])
    assert done.exit_code == 0, done.exception
    text = out.read_text(encoding="utf-8")
    for path in (RESULTS / name).iterdir():
        assert path.suffix == ".md" or path.suffix == ".svg" or path.name in text
    heads = re.findall("<thead>.*?</thead>", text, re.S)
    assert all(len(re.findall("<th[ >]", head)) <= WIDE + 3 for head in heads)
    if any(path.suffix in (".jsonl", ".json") for path in (RESULTS / name).iterdir()):
        assert "<table>" in text
    assert "overflow-x" not in text and "<script" not in text


def test_a_page_lies_here_unless_it_is_said_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(report, [str(RESULTS / "table1"), "--plots", "drawn"])
    assert done.exit_code == 0, done.exception
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "ar_chat_stop_acc" in text and "batches of 100" in text  # the last column and the longest names
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["metrics.svg"]


def test_a_wide_table_comes_in_parts_with_its_names() -> None:
    table = Table(("name", *map(str, range(14))), ((("a", ""), *((str(n), "") for n in range(14))),))
    parts = list(table.parts())
    assert [part.heads[0] for part in parts] == ["name"] * 3 and [len(part.heads) for part in parts] == [7, 7, 3]
    assert [cell[0] for part in parts for cell in part.rows[0][1:]] == [str(n) for n in range(14)]


def test_what_was_swept_becomes_lines() -> None:
    def row(label: str, facts: int) -> dict[str, object]:
        known = {"label": label, "method": label.split(",")[0], "facts": facts, "metric": "score"}
        return {**known, "value": 0.5, "low": 0.4, "high": 0.6, "cases": 9}

    gamma = figure_plots([row(f"guard subject, gamma 0.{n}", 9) for n in (3, 5, 7)])
    assert list(gamma) == ["score"] and "gamma 0.30 to 0.70" in gamma["score"]
    facts = figure_plots([row("memit, 50 facts", 50), row("memit, 200 facts", 200)])
    assert list(facts) == ["score"] and "facts 50 to 200" in facts["score"]
    assert list(figure_plots([row("memit", 9), row("rome", 9)])) == ["metrics"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("rows.jsonl", "[1]\n", "neither a run nor rows"),
        ("rows.jsonl", "{\n", "line 1: not valid JSON"),
        ("bench.json", "{", "not valid JSON"),
        ("notes.txt", "hello", "holds no results"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EvaluationError, match=told):
        read_results([tmp_path], lambda name, rows: None)


def test_rows_of_a_folder_are_drawn_by_their_experiment(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"facts": 3, "what": "a"}) + "\n")
    found = read_results([tmp_path], lambda name, rows: {"own": name} if rows[0]["facts"] == 3 else None)
    assert found.files[0].plots == {"own": tmp_path.name} and found.files[0].tables[0].heads == ("facts", "what")
