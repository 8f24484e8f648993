"""`neuraldb merge`: databases of one model become one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.commands import FACTS, Run, digest, write


@pytest.fixture
def make(run: Run, model: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def built(name: str, facts: list[dict[str, str]], *options: object) -> Path:
        source = write(tmp_path / f"{name}.jsonl", facts)
        done = run("build", source, "--out", tmp_path / name, "--model", model, "--steps", 2, *options)
        assert done.exit_code == 0, done.output
        return tmp_path / name

    return built


def test_facts_of_both_live_and_those_that_share_a_key_are_solved(run: Run, model: Path, tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    a, b = make("a", [FACTS[0], FACTS[2]]), make("b", [FACTS[1], FACTS[3]])  # FACTS[0] and [1] share a key
    done = run("merge", a, b, "--out", tmp_path / "waits", "--json")
    assert done.exit_code == 0, done.output
    info = json.loads(done.stdout)
    # Paris, at position 0, has two entries.
    assert (info["facts"], info["entries"], info["waiting"], info["generation"]) == (4, 5, 2, 1)
    assert run("solve", tmp_path / "waits", "--model", model).exit_code == 0
    solved = json.loads(run("info", tmp_path / "waits", "--json").stdout)
    assert (solved["facts"], solved["entries"], solved["waiting"]) == (4, 4, 0)

    done = run("merge", a, b, "--out", tmp_path / "whole", "--model", model, "--link", "--json")
    assert done.exit_code == 0, done.output
    info = json.loads(done.stdout)
    assert (info["facts"], info["entries"], info["waiting"]) == (4, 4, 0)
    assert run("verify", tmp_path / "whole", "--deep").exit_code == 0


def test_a_conflict_changes_nothing_until_one_is_chosen(run: Run, tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    a, b = make("a", [FACTS[2]]), make("b", [{**FACTS[2], "target": "Lima"}])
    before = digest(a), digest(b)
    done = run("merge", a, b, "--out", tmp_path / "new")
    assert done.exit_code == 1 and "1 facts have another target" in done.stderr and "'Lima'" in done.stderr
    assert not (tmp_path / "new").exists() and (digest(a), digest(b)) == before
    assert run("merge", b, "--into", a, "--on-conflict", "last").exit_code == 0
    assert [fact["target"] for fact in json.loads(run("facts", a, "--json").stdout)] == ["Lima"]


def test_other_layers_and_gates_are_refused(run: Run, tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    a, other = make("a", [FACTS[2]]), make("other", [FACTS[0]], "--layer", 2)
    done = run("merge", a, other, "--out", tmp_path / "new")
    assert done.exit_code == 1 and "layer 1" in done.stderr and "layer 2" in done.stderr
    gate = make("gate", [FACTS[0]], "--gamma", 0.5)
    assert "give one (--gamma)" in run("merge", a, gate, "--out", tmp_path / "new").stderr
    done = run("merge", a, gate, "--out", tmp_path / "new", "--gamma", 0.6, "--json")
    assert json.loads(done.stdout)["gamma"] == 0.6
    assert run("merge", a, gate).exit_code == 2


def test_ivf_shares_a_quantiser_or_says_that_it_trains_anew(run: Run, model: Path, tmp_path: Path) -> None:
    options = ("--model", model, "--residual", "none", "--guard", "none", "--index", "ivf", "--nlist", 2)
    for name in "ab":
        records = [{**FACTS[2], "subject": f"Marie {name}{n}", "id": ""} for n in range(3)]
        facts = write(tmp_path / f"{name}.jsonl", records)
        assert run("build", facts, "--out", tmp_path / name, *options).exit_code == 0

    def merge(out: str) -> str:
        done = run("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / out)
        assert done.exit_code == 0, done.output
        info = json.loads(run("info", tmp_path / out, "--json").stdout)
        assert info["index"] == {"kind": "ivf", "nlist": 2} and info["facts"] == 6
        assert run("verify", tmp_path / out, "--deep").exit_code == 0
        assert {path.name for path in (tmp_path / out / "search").iterdir()} >= {"ivf.json"}
        return str(done.stderr)

    assert f"quantiser of {tmp_path / 'a'} is shared" in merge("shared")
    for name in "ab":
        shutil.rmtree(tmp_path / name / "search")
    assert "trained anew" in merge("anew")
