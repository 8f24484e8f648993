"""`neuraldb test`, whole, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.commands import FACTS, Run, write

DELIVERIES = ("residual", "text", "both", "auto")


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_lights_problems_and_figures(run: Run, db: Path, delivery: str) -> None:
    done = run("test", db, "--delivery", delivery, "--max-new-tokens", 6)
    assert done.exit_code == 0, done.output
    assert "The Eiffel Tower is located in the city of → Rome" in done.stdout
    assert "own prompts answered with the target" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.endswith(f"red; delivery {delivery}") and sum(map(int, last.replace(",", "").split()[::2][:3])) == 4


def test_json_a_sample_and_a_run_that_is_resumed(run: Run, db: Path, tmp_path: Path) -> None:
    asks = write(
        tmp_path / "asks.jsonl",
        [
            {**{name: FACTS[0][name] for name in ("subject", "prompt", "target")}, "questions": ["Where is the {}?"],
             "completions": [], "neighbours": ["Berlin is"]},
            {"subject": "Nobody", "prompt": "{} is", "target": "here"},
            {"messages": [{"role": "user", "content": "Hello"}], "answer": "(no Rome)", "name": "hello"},
        ],
    )  # fmt: skip
    command = ("test", db, "--asks", asks, "--out", tmp_path / "run.jsonl", "--max-new-tokens", 4, "--json")
    done = run(*command)
    assert done.exit_code == 0, done.output
    assert "1 record of" in done.stderr and "left out: not in" in done.stderr
    told = json.loads(done.stdout)
    assert [one["id"] for one in told["facts"]] == ["tower", "hello"] and sum(told["lights"].values()) == 1
    asked = [one["prompt"] for one in told["facts"][0]["answers"]]
    assert asked[0] == "The Eiffel Tower is located in the city of" and asked[-1] == "Berlin is"
    assert asked[1] == [{"role": "user", "content": "Where is the Eiffel Tower?"}]
    assert told["summary"]["own_said"]["of"] == 1 and told["delivery"] == "auto"
    assert json.loads(run(*command).stdout) == told
    other = run(*command, "--delivery", "residual")
    assert other.exit_code == 1 and "is another run" in other.stderr

    some = run("test", db, "--sample", 1, "--max-new-tokens", 2)
    assert some.exit_code == 0 and "asking for 1 of 4 facts" in some.stderr


def test_templates_and_what_is_wrong_with_them(run: Run, db: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[P1]\nquestions = ['Who?']\n")
    done = run("test", db, "--templates", path)
    assert done.exit_code == 1 and f"{path}, relation P1" in done.stderr and "loading" not in done.stderr
