"""The script that chooses the weight editors' settings, whole, on a tiny model."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from helpers.commands import write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("tune_baselines", ROOT / "scripts" / "tune_baselines.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stages: dict[str, list[list[dict[str, Any]]]] = {"ft": [[{"layers": [1]}, {"layers": [2]}], [{"steps": 1}]]}
    monkeypatch.setattr(module, "STAGES", stages)
    return module


def test_tries_all_and_keeps_the_best(
    script: ModuleType, tiny_model: Path, cases_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage stands on the best before it, which stays where nothing beats it; what was tried is not tried again."""
    first = json.loads(cases_file.read_text().splitlines()[0])
    test, out = write(tmp_path / "test.jsonl", [first]), tmp_path / "tuning.json"
    scores = iter([0.1, 0.3, 0.5, 0.4])  # the base model's, and the attempts'
    whole = script.measure

    def measure(*arguments: Any) -> dict[str, Any]:
        return {**whole(*arguments), "score": next(scores)}

    monkeypatch.setattr(script, "measure", measure)
    command = ["tune", str(cases_file), "--test", str(test), "--model", str(tiny_model), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--count", "2", "--methods", "ft", "--device", "cpu"])
    script.main()
    record = json.loads(out.read_text())
    assert [one["settings"] for one in record["tried"]] == [
        {"layers": [1]}, {"layers": [2]}, {"layers": [2], "steps": 1}
    ]  # fmt: skip
    assert record["chosen"] == {"ft": {"layers": [2]}}
    assert len(record["subjects"]) == 2 and first["requested_rewrite"]["subject"] not in record["subjects"]
    assert record["base"]["score"] == 0.1 and {"efficacy", "generalization", "specificity"} <= set(record["base"])

    scores = iter([0.1])  # the base model is measured; nothing else is
    script.main()
    assert json.loads(out.read_text()) == record


def test_another_search_is_refused(
    script: ModuleType, tiny_model: Path, cases_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write(tmp_path / "tuning.json", [{"model": "x"}])
    before = out.read_bytes()
    test = write(tmp_path / "test.jsonl", [json.loads(cases_file.read_text().splitlines()[0])])
    command = ["tune", str(cases_file), "--test", str(test), "--model", str(tiny_model), "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--methods", "ft", "--device", "cpu"])
    with pytest.raises(SystemExit, match="the record of another search"):
        script.main()
    assert out.read_bytes() == before
