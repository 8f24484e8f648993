"""The experiment `answers`: every way of putting facts in place is asked the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import Run, write
from neuraldb_faiss.errors import EvaluationError, FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.experiments.answers import retrieval
from neuraldb_faiss.research.experiments.lab import COMMON, merged

SETTINGS = ("build={layer=1, steps=4}", "length=4", "method_settings={ft={layers=[2], steps=2}}")
COMMAND = tuple(part for setting in SETTINGS for part in ("--set", setting))


def rows_of(done: Any) -> dict[tuple[str, str], dict[str, Any]]:
    assert done.exit_code == 0, done.output
    return {(row["method"], row["measure"]): row for row in json.loads(done.stdout)}


def test_methods_are_asked_the_same(run: Run, tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    methods = ["residual", "text", "both", "auto", "retrieval", "ft"]
    command = ("experiment", "answers", "--model", tiny_model, "--cases", cases_file, "--facts", 2, "--out",
               tmp_path / "out", *COMMAND, "--set", f"methods={json.dumps(methods)}", "--json")  # fmt: skip
    rows = rows_of(run(*command))
    assert {method for method, _ in rows} == set(methods)
    for measure in ("own_said", "completions_said", "questions_said", "elsewhere_same"):
        asked = {(row["of"], row.get("base")) for (_, name), row in rows.items() if name == measure}
        assert len(asked) == 1, measure
    assert sum(rows["ft", "lights"][light] for light in ("green", "yellow", "red")) == 2
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| measure | base | residual | text | both | auto | retrieval | ft | asks |" in table
    assert len(list((tmp_path / "out" / "runs").glob("base-*.jsonl"))) == 1  # asked once for all
    assert rows_of(run(*command)) == rows


def test_a_file_of_asks_brings_its_facts(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    fact = {"subject": "Paris", "prompt": "{} is the capital of", "target": "Italy", "questions": ["Where is Paris?"]}
    talk = {"messages": [{"role": "user", "content": "Hi"}], "answer": "Paris"}
    asks = write(tmp_path / "asks.jsonl", [fact, talk])
    done = run("experiment", "answers", "--model", tiny_model, "--set", f"asks='{asks}'", "--out", tmp_path / "out",
               *COMMAND, "--set", 'methods=["text"]', "--json")  # fmt: skip
    rows = rows_of(done)
    assert rows["text", "questions_said"]["of"] == rows["text", "conversations"]["of"] == 1


def test_plain_retrieval_puts_the_likest_statements_first() -> None:
    prompts = (("Acme", "The boss of {} is", "Ann"), ("Nokia", "{} makes", "tyres"), ("Rome", "{} is in", "Peru"))
    with retrieval([Fact(*one) for one in prompts], None, 1).place() as placed:
        sent = placed.send("Nokia sells")
        assert sent.startswith("Facts:\n- Nokia makes tyres.\n\n") and sent.endswith("Nokia sells")
        told: Any = placed.send(({"role": "user", "content": "Who is the boss of Acme?"},))
        system, asked = told
        assert "The boss of Acme is Ann." in system["content"] and asked["content"] == "Who is the boss of Acme?"
        assert not placed.edits("Nokia sells")


def test_what_is_wrong(run: Run, tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the experiment needs 'cases'"):
        merged({"asks": ""}, {"model": "m"})
    assert merged({"asks": ""}, {"model": "m", "asks": "a.jsonl"})["facts"] == COMMON["facts"]
    done = run("experiment", "answers", "--model", tiny_model, "--cases", cases_file, "--facts", 1, "--out",
               tmp_path / "out", *COMMAND, "--set", 'methods=["magic"]')  # fmt: skip
    assert done.exit_code == 1 and "unknown method 'magic': choose one of auto, residual, text, both" in done.stderr
    from neuraldb_faiss.answers.asks import facts_of

    with pytest.raises(FactError, match="line 1"):
        facts_of(write(tmp_path / "bad.jsonl", [{"subject": "Acme"}]))
