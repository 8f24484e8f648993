"""Tables, differences and the page."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.research.evaluation import findings, plots, style
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
        lambda: plots.dots(["efficacy", "score"], {"neuraldb": [one, None], "a < b": [one, one]}),
        lambda: plots.lines({"neuraldb": [(10, one), (100, one)]}, x="facts", y="efficacy", log=True),
        lambda: plots.curves({"a": [(0.0, 0.5), (0.1, 0.9)]}, x="x", y="y", log_x=True),
        lambda: plots.histogram({"edited": [0.1, 0.2], "others": [0.0]}, x="ω"),
    ):
        drawing = draw()
        ElementTree.fromstring(drawing)
        assert drawing == draw()
    assert "a &lt; b" in plots.dots(["x"], {"a < b": [one]}) and "$x$" in plots.dots(["$x$"], {"a": [one]})


def test_no_panel_has_more_than_six_lines_and_each_line_is_named() -> None:
    few = {f"series {n}": [(0.0, n / 10), (1.0, n / 10)] for n in range(6)}
    many = {f"{text}, guard {guard}": [(0.0, 0.1), (1.0, 0.2)] for text in "abcd" for guard in ("subject", "none")}
    for series, panels in ((few, 1), (many, 2), ({str(n): [(0.0, n), (1.0, n)] for n in range(13)}, 3)):
        drawing = plots.curves(series, x="x", y="y")
        assert len(re.findall(r'id="axes_\d+"', drawing)) in (panels, panels + panels % 2)
        text = " ".join(ElementTree.fromstring(drawing).itertext())
        assert all(name in text for name in series)


def test_colours_of_a_panel_are_apart() -> None:
    shades = style.colours(["neuraldb", "neuraldb, 5 facts", "memit", "memit, batches of 100", "base", "other"])
    assert len(set(shades.values())) == 6 and shades["neuraldb"] == style.BLUE and shades["base"] == style.GREY
    assert style.colours([str(n) for n in range(8)])["7"] == style.GREY


def test_names_at_line_ends_do_not_lie_on_one_another() -> None:
    apart = style._apart({"a": 10.0, "b": 10.5, "c": 11.0, "d": 90.0})
    places = sorted(apart.values())
    assert all(b - a >= style._GAP - 1e-9 for a, b in pairwise(places)) and apart["d"] == 90.0


@pytest.mark.parametrize(
    ("ours", "other", "told"),
    [
        (Estimate(0.9, 0.88, 0.92, 9), Estimate(0.5, 0.4, 0.6, 9), "neuraldb, 90; next is memit with 50"),
        (Estimate(0.9, 0.8, 0.95, 9), Estimate(0.85, 0.7, 0.9, 9), "neuraldb, 90, within the intervals of memit"),
        (Estimate(0.4, 0.3, 0.5, 9), Estimate(0.8, 0.7, 0.9, 9), "memit, 80; next is neuraldb with 40"),
    ],
)  # fmt: skip
def test_titles_say_what_the_data_show(ours: Estimate, other: Estimate, told: str) -> None:
    assert (
        findings.of_groups(["score"], {"neuraldb": [ours], "memit": [other]}, scale=100) == f"score: highest is {told}"
    )


def test_titles_of_lines_curves_and_tasks() -> None:
    lines = {"neuraldb": [(50.0, 99.0), (200.0, 98.5)], "memit": [(50.0, 90.0), (200.0, 40.0)]}
    assert findings.of_lines(lines, x="facts", y="score") == (
        "score, facts 50 to 200: neuraldb falls from 99 to 98.5; memit falls from 90 to 40"
    )
    curves = {"a": [(0.1, 0.5), (0.2, 0.9)], "b": [(0.15, 0.7)]}
    assert findings.of_curves(curves, x="rate", y="recall") == "recall at rate of 0.15: 0.70 for b, 0.50 for a"
    base, low, same = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.2, 0.1, 0.3, 9), Estimate(0.55, 0.45, 0.6, 9)
    tasks = {"neuraldb": [same, same], "base": [base, base]}
    assert (
        findings.of_groups(["sciq", "arc"], tasks) == "neuraldb lies within the base model’s interval in all 2 of them"
    )
    tasks["neuraldb"] = [same, low]
    assert findings.of_groups(["sciq", "arc"], tasks) == "neuraldb differs from the base model in arc, of 2"
