"""Reports of tests are written, found and read again; other files are refused or passed by."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss.answers.report_file import FactResult, Problem, find_report, read_report, write_report
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact

ANSWERS = [
    {"kind": "own", "prompt": "Oslo is in", "base": "Norway", "edited": "Peru", "problem": None},
    {"kind": "question", "prompt": [{"role": "user", "content": "Where?"}], "base": "", "edited": "No.",
     "problem": "not said"},
]  # fmt: skip
FACT = {
    "id": "oslo",
    "subject": "Oslo",
    "prompt": "Oslo is in",
    "target": "Peru",
    "light": "yellow",
    "answers": ANSWERS,
}


def report(database: str = "indexes/mine", **more: Any) -> dict[str, Any]:
    return {"database": database, "delivery": "auto", "facts": [FACT, {"id": "plain", "light": None}], **more}


def test_what_is_written_beside_a_run_is_read_by_either_name(tmp_path: Path) -> None:
    run = tmp_path / "run.jsonl"
    written = write_report(run, report())
    assert written == tmp_path / "run.report.json"
    for name in (run, written):
        read = read_report(name)
        assert (read.path, read.database, read.delivery) == (written, "indexes/mine", "auto")
        problems = (Problem("Where?", "No.", "not said"),)
        assert read.facts == {"oslo": FactResult("yellow", "Oslo is in", "Peru", 1, 2, problems)}
    assert read.facts["oslo"].is_of(Fact("Oslo", "{} is in", "Peru"))
    assert not read.facts["oslo"].is_of(Fact("Oslo", "{} is in", "Chile"))


def test_the_newest_report_of_a_database_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(("mine", "mine", "other")):
        path = write_report(tmp_path / f"{number}.jsonl", report(f"somewhere/{name}"))
        os.utime(path, (1000 + number, 1000 + number))
    (tmp_path / "broken.report.json").write_text("{")
    found = find_report(tmp_path / "mine", [tmp_path])
    assert found is not None and found.path.name == "1.report.json"
    assert find_report(tmp_path / "third", [tmp_path]) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"facts": 3}', '{"facts": [], "delivery": "auto"}', '{"facts": [1]}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.report.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match="no report of neuraldb test"):
        read_report(path)


def test_a_missing_report_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="neuraldb test --out writes it"):
        read_report(tmp_path / "run.jsonl")
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_report(tmp_path / "none.report.json")
