"""Tables, differences and the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.evaluation import plots
from neuraldb_faiss.research.evaluation.comparison import compare, markdown
from neuraldb_faiss.research.evaluation.report import write_report
from neuraldb_faiss.research.evaluation.statistics import Estimate
from neuraldb_faiss.runs import RunWriter, read_run

METRICS = ["efficacy", "generalization", "specificity", "score", "fluency", "target_nll"]


def make(path: Path, method: str, efficacy: list[float], *, facts: int = 4, **identity: Any) -> Path:
    told = {"kind": "eval", "method": method, "dataset": "counterfact", "file": "cf.jsonl", "sha256": "x",
            "model": "tiny", "metrics": METRICS, **identity}  # fmt: skip
    if method != "base":
        told["facts"] = facts
    rows = [
        {"case": str(n), "efficacy": e, "generalization": 0.5, "specificity": 0.5, "fluency": None, "target_nll": 1.0,
         **({} if method == "base" else {"base_efficacy": 0.0, "base_generalization": 0.25, "base_specificity": 0.75})}
        for n, e in enumerate(efficacy)
    ]  # fmt: skip
    with RunWriter(path, told, {"command": f"neuraldb eval --method {method}", "hardware": {}, "versions": {}}) as run:
        run.add(rows)
    return path


def test_runs_on_the_same_cases_are_compared_with_intervals(tmp_path: Path) -> None:
    paths = [
        make(tmp_path / "m.jsonl", "memit", [1, 1, 0, 0]),
        make(tmp_path / "b.jsonl", "memit", [1, 0, 0, 0], method_settings={"batch": 100}),
        make(tmp_path / "n.jsonl", "neuraldb", [1, 1, 1, 1]),
    ]
    (one,) = compare([read_run(path) for path in paths])
    assert [entry.label for entry in one.entries] == ["neuraldb", "memit", "memit, batches of 100", "base"]
    found = one.estimates["memit", "efficacy"]
    assert found is not None and found.value == 0.5
    base = one.estimates["base", "score"]  # from the base_ columns
    assert base is not None and base.value == 0.0
    apart = one.apart["memit", "efficacy"]
    assert apart is not None and apart.value == 0.5 and apart.n == 4
    assert ("base", "efficacy") in one.apart and ("neuraldb", "efficacy") not in one.apart
    assert one.estimates["memit", "fluency"] is None
    text = markdown(one)
    assert "| method | cases | efficacy |" in text and "| memit | 4 | 50.0 [0.0, 100.0] |" in text and "n/a" in text


def test_groups_labels_and_metrics(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "a.jsonl", "neuraldb", [1]),
        make(tmp_path / "b.jsonl", "neuraldb", [1], method_settings={"gamma": 0.6}),
        make(tmp_path / "c.jsonl", "neuraldb", [1], dataset="zsre"),
        make(tmp_path / "d.jsonl", "neuraldb", [1], facts=8, dataset="zsre"),
    ]
    first, second = compare([read_run(path) for path in runs], ["efficacy"])
    assert [e.label for e in first.entries] == ["neuraldb (a)", "neuraldb (b)", "base"]
    assert [e.label for e in second.entries] == ["neuraldb, 4 facts", "neuraldb, 8 facts", "base"]
    assert [column.name for column in first.columns] == ["efficacy"]
    # with as many facts, else with the most
    assert [(second.reference(e) or e).label for e in second.entries] == [
        "neuraldb, 4 facts", "neuraldb, 8 facts", "neuraldb, 8 facts",
    ]  # fmt: skip
    with pytest.raises(EvaluationError, match="unknown metric 'bleu'"):
        compare([], ["bleu"])


def test_task_results_are_compared_by_document(tmp_path: Path) -> None:
    for method, right in (("neuraldb", 1.0), ("base", 0.0)):
        with RunWriter(tmp_path / f"{method}.jsonl", {"kind": "lm-eval", "method": method, "model": "tiny"}, {}) as run:
            run.add({"case": f"sciq/{n}", "of": "sciq", "acc": right, "acc_norm": 1.0} for n in range(3))
            run.add([{"case": "sciq", "task": "sciq", "documents": 3, "acc": right, "acc_norm": 1.0, "harness": {}}])
    (one,) = compare([read_run(tmp_path / f"{method}.jsonl") for method in ("base", "neuraldb")])
    assert [(column.name, column.metric) for column in one.columns] == [("sciq", "acc")]
    apart = one.apart["base", "sciq"]
    assert apart is not None and apart.value == 1.0 and apart.n == 3


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    paths = [
        make(tmp_path / "n.jsonl", "neuraldb", [1, 1, 1, 0], file=evil),
        make(tmp_path / "n8.jsonl", "neuraldb", [1, 1, 1, 0], file=evil, facts=8),
        make(tmp_path / "m.jsonl", "memit", [1, 0, 0, 0], file=evil),
    ]
    out = tmp_path / "pages" / "report.html"
    write_report(paths, out)
    text = out.read_text()
    assert evil not in text and "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!#)', text) and "url(http" not in text and "@import" not in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(drawings) > 1  # bars, and lines over the numbers of facts
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert "75.0" in text and "neuraldb, 4 facts − memit, 4 facts" in text and "neuraldb eval --method memit" in text
    assert not list(out.parent.glob("*.part"))


def test_bad_input_leaves_the_page(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    (tmp_path / "notes.jsonl").write_text("hello\n")
    for paths, words in (([], "at least one run"), ([tmp_path / "none"], "cannot be read"),
                         ([tmp_path / "notes.jsonl"], "line 1: not valid JSON")):  # fmt: skip
        with pytest.raises(EvaluationError, match=words):
            write_report(paths, out)
    assert out.read_text() == "old"


def test_plots_are_svg_and_repeatable() -> None:
    one = Estimate(0.5, 0.25, 0.75, 4)
    for draw in (
        lambda: plots.bars(["efficacy", "score"], {"neuraldb": [one, None], "a < b": [one, one]}),
        lambda: plots.lines({"neuraldb": [(10, one), (100, one)]}, x="facts", y="efficacy", log=True),
        lambda: plots.histogram({"edited": [0.1, 0.2], "others": [0.0]}, x="ω"),
    ):
        drawing = draw()
        ElementTree.fromstring(drawing)
        assert drawing == draw()
    assert "a &lt; b" in plots.bars(["x"], {"a < b": [one]})


def test_bars_are_as_wide_as_their_names() -> None:
    one = Estimate(0.5, 0.25, 0.75, 4)
    widths = [
        float(ElementTree.fromstring(plots.bars(names, {"base": [one] * 6})).get("width", "").removesuffix("pt"))
        for names in (["acc"] * 6, ["generalization"] * 6)
    ]
    assert widths[0] >= 72 * 5 and widths[1] >= 72 * 6 * 1.15
