"""eval, lm-eval and report on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result

from helpers.commands import Run, digest, write
from helpers.tiny import save_tiny
from neuraldb_faiss.research.datasets.registry import DATASETS
from neuraldb_faiss.research.evaluation.metrics import METRICS

QUICK = ("--generations", 0)


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "unexpected" not in last, result.stderr
    for word in words:
        assert word in last


def test_eval(run: Run, db: Path, cases_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "x.jsonl"
    asked = ("eval", db, "--dataset", "counterfact", "--cases", cases_file, "--out", out, "--generations", 1)
    done = run(*asked, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    wanted = {name for name, metric in METRICS.items() if metric.needs <= DATASETS["counterfact"].has}
    assert wanted <= set(found) and found["cases"] == 3 and found["facts"] == 3
    assert found["ar_chat_acc"] is None  # no chat template
    assert found["relation_specificity"] is None  # no such prompts
    assert 0 <= found["efficacy"] <= 1 and found["base_efficacy"] <= found["efficacy"]
    low, high = found["intervals"]["target_nll"]
    assert low <= found["target_nll"] <= high
    assert found["differences"]["target_nll"]["value"] == pytest.approx(found["target_nll"] - found["base_target_nll"])
    assert "1 case" in done.stderr and "left out" in done.stderr
    again = run(*asked)
    assert again.exit_code == 0 and "efficacy" in again.stdout and "difference" in again.stdout
    assert len(out.read_text().splitlines()) == 4  # nothing was measured anew
    limited = run("eval", db, "--dataset", "counterfact", "--cases", cases_file, "--limit", 1, "--no-base", "--json",
                  "--out", tmp_path / "y.jsonl", "--metrics", "efficacy,target_nll")  # fmt: skip
    found = json.loads(limited.stdout)
    assert found["cases"] == 1 and "base_efficacy" not in found and "specificity" not in found


def test_eval_base_and_editor(run: Run, db: Path, cases_file: Path, tmp_path: Path) -> None:
    common = ("eval", db, "--dataset", "counterfact", "--cases", cases_file, *QUICK)
    base = run(*common, "--method", "base", "--out", tmp_path / "base.jsonl")
    assert base.exit_code == 0 and "difference" not in base.stdout, base.output
    tuned = ("--method", "ft", "--set", "layers=[2]", "--set", "steps=2")
    ft = run(*common, *tuned, "--out", tmp_path / "ft.jsonl", "--json")
    assert ft.exit_code == 0, ft.output
    assert json.loads(ft.stdout)["method"] == "ft"
    page = run("report", tmp_path / "base.jsonl", tmp_path / "ft.jsonl", "--out", tmp_path / "r.html")
    assert page.exit_code == 0 and "<svg" in (tmp_path / "r.html").read_text()


def test_zsre(run: Run, tiny_model: Path, zsre_file: Path, tmp_path: Path) -> None:
    built = run("build", zsre_file, "--out", tmp_path / "db", "--model", tiny_model, "--steps", 2)
    assert built.exit_code == 0, built.output
    asked = ("eval", tmp_path / "db", "--dataset", "zsre", "--cases", zsre_file)
    done = run(*asked, "--out", tmp_path / "x.jsonl", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"efficacy", "generalization", "specificity", "score"} <= set(found) and "fluency" not in found


def test_eval_refuses_cases_it_cannot_use(run: Run, db: Path, cases_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    common = ("eval", db, "--out", out, "--dataset", "counterfact")
    rewrite = {"subject": "Rome", "prompt": "{} is", "target_new": "x"}
    bad = write(tmp_path / "bad.jsonl", [{"requested_rewrite": rewrite}])
    other = write(tmp_path / "other.jsonl", [{
        "prompt": "Rome is in", "subject": "Rome", "target_new": "Spain", "ground_truth": "Italy",
        "rephrase_prompt": "Rome lies in", "locality_prompt": "Bonn is in", "locality_ground_truth": "Germany",
    }])  # fmt: skip
    names = write(tmp_path / "names.jsonl", [["Rome"]])
    before = {**digest(tmp_path), **digest(db)}
    refused(run(*common, "--cases", bad), "bad.jsonl, line 1", "target_true")
    refused(run(*common, "--cases", other), "no case to evaluate")
    refused(run(*common, "--cases", tmp_path / "none"), "does not exist")
    refused(run(*common, "--cases", cases_file, "--metrics", "bleu"), "unknown metric 'bleu'", "efficacy")
    refused(run(*common, "--cases", cases_file, "--quirk", "x"), "unknown quirk 'x'")
    refused(run(*common, "--cases", cases_file, "--set", "lr=1"), "neuraldb has no setting 'lr'")
    refused(run(*common, "--cases", cases_file, "--gamma", "2"), "gamma is 2")
    refused(run(*common, "--cases", cases_file, "--method", "memit", "--statistics", tmp_path / "none"),
            "neuraldb statistics")  # fmt: skip
    assert run(*common, "--cases", cases_file, "--method", "mend").exit_code == 2
    assert run(*common, "--cases", cases_file, "--set", "lr").exit_code == 2
    refused(run("report", names, "--out", tmp_path / "r.html"), "holds neither a run nor rows of results")
    left = {name: hash_ for name, hash_ in {**digest(tmp_path), **digest(db)}.items() if not name.startswith("base-")}
    assert left == before


def test_another_model_and_another_run(run: Run, db: Path, cases_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    common = ("eval", db, "--dataset", "counterfact", "--cases", cases_file, "--out", out, *QUICK)
    another = save_tiny(tmp_path / "gpt2", "gpt2")
    for method in ("neuraldb", "base", "ft"):
        refused(run(*common, "--method", method, "--model", another), "this model is")
    assert not out.exists()
    out.write_text("my notes\n")
    refused(run(*common), "not valid JSON")
    assert out.read_text() == "my notes\n"


def test_lm_eval(run: Run, db: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    record = {"sentence": "Rome is in Italy so _ is a city.", "option1": "Rome", "option2": "Italy", "answer": "1"}
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "winogrande_val.jsonl", [record] * 3)
    common = ("lm-eval", db, "--data", tmp_path / "data", "--out", tmp_path / "lm.jsonl")
    done = run(*common, "--json", "--", "--tasks", "winogrande", "--limit", 2)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["winogrande"]["documents"] == 2 and found["winogrande"]["base_acc"] in (0.0, 1.0)
    plain = run(*common, "--", "--tasks", "winogrande", "--limit", 2)
    assert plain.exit_code == 0 and "acc" in plain.stdout
    page = run("report", *tmp_path.glob("*.jsonl"), "--out", tmp_path / "r.html")
    assert page.exit_code == 0 and "General ability" in (tmp_path / "r.html").read_text()
    refused(run(*common, "--no-base", "--", "--tasks", "winogrande"), "another run", "limit")
    refused(run("lm-eval", db, "--out", tmp_path / "z.jsonl"), "name --tasks")
