"""What an array of jobs does: each builds a shard, one merges them; together they are the whole build."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from helpers.commands import write
from helpers.tiny import save_tiny
from neuraldb_faiss.cli.main import cli
from neuraldb_faiss.store import Store, verify

SHARDS = 3
PROMPTS = ("{} is the capital of", "{} is the seat of", "I know that {} was founded by")
RECORDS = [
    {"subject": f"City {n}", "prompt": prompt, "target": ("Italy", "Rome", "Steve")[n % 3]}
    for n in range(9)
    for prompt in PROMPTS[: 1 + n % 3]  # the first two have one key, the third another
]


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def entries(path: Path) -> dict[tuple[str, frozenset[Any]], tuple[np.ndarray, np.ndarray]]:
    """By key_id and facts: the entry's keys [k, d1] and residual [d2]."""
    store = Store(path)
    assert verify(store, deep=True) == []
    facts: dict[int, set[Any]] = {}
    key_ids = {}
    for fact in store.catalog.facts(store.generation, every_row=True):
        assert fact.state == "live"
        facts.setdefault(fact.entry, set()).add((fact.id, fact.text, fact.target, fact.sources))
        key_ids[fact.entry] = fact.key_id
    found = {}
    for segment in store.snapshot().segments:
        for row, entry in enumerate(segment.entries):
            keys = np.array(segment.keys[segment.key_rows == row], np.float32)
            found[key_ids[entry], frozenset(facts[entry])] = keys, segment.residuals(np.array([row]))[0]
    store.close()
    return found


def test_merged_shards_are_the_whole_build(model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", RECORDS)
    command = ("build", facts, "--model", model, "--steps", 4)
    assert run(*command, "--out", tmp_path / "whole").exit_code == 0
    parts = [tmp_path / f"part-{number}" for number in range(1, SHARDS + 1)]
    for number, part in enumerate(parts, start=1):
        done = run(*command, "--out", part, "--shard", f"{number}/{SHARDS}")
        assert done.exit_code == 0, done.output
    assert run("merge", *reversed(parts), "--out", tmp_path / "merged").exit_code == 0
    whole, merged = entries(tmp_path / "whole"), entries(tmp_path / "merged")
    assert whole.keys() == merged.keys() and len(whole) == 12
    assert sum(len(facts) for _, facts in whole) == len(RECORDS)
    for which, (keys, residual) in whole.items():
        other_keys, other = merged[which]
        np.testing.assert_allclose(other_keys, keys, atol=2e-3)  # float16 of a unit vector
        assert residual @ other / np.linalg.norm(residual) / np.linalg.norm(other) >= 0.999


@pytest.mark.parametrize("value", ["0/4", "5/4", "1/0", "-1/4", "1", "1/4/2", "one/two", "1.5/4", "/", ""])
def test_a_shard_that_does_not_exist_is_refused_in_one_line(value: str, tmp_path: Path) -> None:
    done = run("build", "facts.jsonl", "--out", tmp_path / "db", "--model", "m", "--shard", value)
    assert done.exit_code == 2
    told = [line for line in done.stderr.splitlines() if line.startswith("Error:")]
    assert len(told) == 1 and "--shard" in told[0] and repr(value) in told[0]
    assert not (tmp_path / "db").exists()


def test_an_empty_shard_says_so(model: Path, tmp_path: Path) -> None:
    facts = write(tmp_path / "facts.jsonl", RECORDS[:1])
    told = [
        run("build", facts, "--model", model, "--residual", "none", "--out", tmp_path / f"{n}", "--shard", f"{n}/2")
        for n in (1, 2)
    ]
    (empty,) = [done for done in told if done.exit_code]
    assert empty.exit_code == 1 and "no facts" in empty.stderr
    assert len([path for path in (tmp_path / "1", tmp_path / "2") if path.exists()]) == 1


def test_the_scripts_in_the_docs_are_what_the_command_line_takes() -> None:
    """Every `neuraldb` line of the page, with its variables filled in."""
    text = (Path(__file__).parents[3] / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    for script in re.findall(r"```bash\n(.*?)```", text, re.S):
        assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    commands = re.findall(r"^(?! *[|-]).*\bneuraldb ((?:build|merge|verify) [^`\n]*--[^`\n]*)$", text, re.M)
    assert len(commands) == 6
    for line in commands:
        words = line.removesuffix("&").replace("$((gpu + 1))", "1").replace("$SLURM_ARRAY_TASK_ID/$shards", "3/16")
        name, *arguments = shlex.split(words)
        command = cli.get_command(cli.make_context("neuraldb", ["--help"], resilient_parsing=True), name)
        assert command is not None
        command.make_context(name, arguments)
