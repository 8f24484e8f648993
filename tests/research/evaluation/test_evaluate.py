"""A whole evaluation: rows, the base model's columns, going on after a kill, methods in one mould."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuraldb_faiss import NeuralDB
from neuraldb_faiss.errors import EvaluationError, NeuralDBError
from neuraldb_faiss.research import baselines
from neuraldb_faiss.research.datasets.cases import Case, in_place, read_cases
from neuraldb_faiss.research.evaluation import evaluate as module
from neuraldb_faiss.research.evaluation.evaluate import Settings, Source, evaluate, measure, run_identity
from neuraldb_faiss.research.evaluation.methods import METHODS, Method, base, facts_identity, make_method
from neuraldb_faiss.research.evaluation.text import TfIdf
from neuraldb_faiss.runs import base_path, read_run

FAST = Settings("counterfact", generations=2, length=8)
Loaded = tuple[Any, Any]


@pytest.fixture
def database(db: Path) -> Iterator[NeuralDB]:
    with NeuralDB.open(db) as opened:
        yield opened


@pytest.fixture
def cases(cases_file: Path, database: NeuralDB) -> list[Case]:
    return in_place(read_cases(cases_file, "counterfact"), database.facts())


@pytest.fixture
def source(cases_file: Path, cases: list[Case], database: NeuralDB) -> Source:
    corpus = [text for case in cases for text in case.references]
    return Source(str(cases_file), "tiny", database.facts(), corpus)


def test_a_row_holds_the_metrics_with_and_without_the_edit(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path
) -> None:
    method = make_method("neuraldb", database, *loaded, {})
    rows = evaluate(*loaded, cases, method, tmp_path / "x.jsonl", FAST, source, chunk=2)
    assert [row["case"] for row in rows] == [case.id for case in cases] and len(rows) == 3
    table = TfIdf(source.corpus)
    bare = measure(*loaded, cases, FAST, table)
    with database.attach(*loaded):
        edited = measure(*loaded, cases, FAST, table)
    for row, own, without in zip(rows, edited, bare, strict=True):
        for name in own:
            # one batch here and two there
            assert row[name] == pytest.approx(own[name], abs=1e-4), name
            assert row[f"base_{name}"] == pytest.approx(without[name], abs=1e-4), name
    assert sum(row["target_nll"] for row in rows) < sum(row["base_target_nll"] for row in rows) - 0.5
    assert all(row["ar_chat_acc"] is None for row in rows)  # the tokenizer has no chat template
    header = read_run(tmp_path / "x.jsonl").header
    assert header["identity"]["facts"] == 3 and header["versions"]["torch"] and header["command"]


def test_base_is_measured_once(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []
    real = module.measure
    monkeypatch.setattr(module, "measure", lambda *args: calls.append(len(args[2])) or real(*args))
    method = make_method("neuraldb", database, *loaded, {})
    evaluate(*loaded, cases, method, tmp_path / "a.jsonl", FAST, source)
    assert calls == [3, 3]
    other = make_method("neuraldb", database, *loaded, {"gamma": 0.9})
    evaluate(*loaded, cases, other, tmp_path / "b.jsonl", FAST, source)
    assert calls == [3, 3, 3]
    shared = base_path(tmp_path / "b.jsonl", run_identity(base(), FAST, source))
    assert list(tmp_path.glob("base-*.jsonl")) == [shared] and len(read_run(shared).rows) == 3
    evaluate(*loaded, cases, method, tmp_path / "a.jsonl", FAST, source)
    assert calls == [3, 3, 3]  # nothing was left to do
    evaluate(*loaded, cases, method, tmp_path / "c.jsonl", FAST, source, with_base=False)
    assert not any(key.startswith("base_") for row in read_run(tmp_path / "c.jsonl").rows.values() for key in row)


def test_killed_and_gone_on_with_is_the_same(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    method = make_method("neuraldb", database, *loaded, {})
    whole = evaluate(*loaded, cases, method, tmp_path / "whole.jsonl", FAST, source, chunk=1)
    real, left = module.measure, [4]

    def dying(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args)

    (tmp_path / "killed").mkdir()
    out = tmp_path / "killed" / "x.jsonl"
    monkeypatch.setattr(module, "measure", dying)
    with pytest.raises(KeyboardInterrupt):  # three cases of the base model, one of the method
        evaluate(*loaded, cases, method, out, FAST, source, chunk=1)
    assert len(read_run(out).rows) == 1
    monkeypatch.setattr(module, "measure", real)
    resumed = evaluate(*loaded, cases, method, out, FAST, source, chunk=1)
    for one, other in zip(whole, resumed, strict=True):
        assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    assert json.loads(out.read_text().splitlines()[2])["note"] == "resumed"


def test_all_facts_are_in_place_for_a_few_cases(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path
) -> None:
    inside = []

    @contextmanager
    def enter(_: object) -> Iterator[None]:
        inside.append(len(source.facts))
        yield

    evaluate(*loaded, cases[:1], Method("neuraldb", {}, enter), tmp_path / "x.jsonl", FAST, source)
    assert inside == [3]  # once, whatever the number of cases
    run = read_run(tmp_path / "x.jsonl")
    assert run.identity["facts"] == 3 and len(run.rows) == 1


def test_another_edit_is_another_run(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path
) -> None:
    out = tmp_path / "x.jsonl"
    evaluate(*loaded, cases, make_method("neuraldb", database, *loaded, {}), out, FAST, source)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = make_method("neuraldb", database, *loaded, {"gamma": 0.8})
    with pytest.raises(EvaluationError, match="another run: method_settings"):
        evaluate(*loaded, cases, other, out, FAST, source)
    with pytest.raises(EvaluationError, match="another run: .*generations is 2 there and 1 here"):
        evaluate(*loaded, cases, make_method("neuraldb", database, *loaded, {}), out,
                 Settings("counterfact", generations=1, length=8), source)  # fmt: skip
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failing_method_leaves_no_run(loaded: Loaded, cases: list[Case], source: Source, tmp_path: Path) -> None:
    @contextmanager
    def failing(_: object) -> Iterator[None]:
        raise NeuralDBError("no statistics")
        yield

    with pytest.raises(NeuralDBError, match="no statistics"):
        evaluate(*loaded, cases, Method("memit", {}, failing), tmp_path / "x.jsonl", FAST, source)
    assert not (tmp_path / "x.jsonl").exists()
    with pytest.raises(EvaluationError, match="no case"):
        evaluate(*loaded, [], base(), tmp_path / "x.jsonl", FAST, source)


def test_weight_editors_have_the_same_mould(
    loaded: Loaded, database: NeuralDB, cases: list[Case], source: Source, tmp_path: Path
) -> None:
    model, tokenizer = loaded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method = make_method("ft", database, model, tokenizer, {"layers": [2], "steps": 3, "lr": 0.05, "bound": 0.05})
    assert method.identity["steps"] == 3 and method.identity["layers"] == (2,)
    rows = evaluate(model, tokenizer, cases, method, tmp_path / "ft.jsonl", FAST, source)
    assert any(row["target_nll"] != row["base_target_nll"] for row in rows)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    notes = [json.loads(line) for line in (tmp_path / "ft.jsonl").read_text().splitlines()]
    assert next(line for line in notes if line.get("note") == "edit")["settings"]["steps"] == 3


def test_a_weight_editor_writes_the_residuals_of_the_database(
    loaded: Loaded, database: NeuralDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = loaded
    given: list[Any] = []
    monkeypatch.setattr(baselines, "edited", lambda *_, **how: given.append(how) or nullcontext(), raising=False)
    facts, layer = list(reversed(database.facts())), database.config.layer
    settings = {"layers": [layer - 1, layer], "solve_on": "database", "batch": 2}
    method = make_method("memit", database, model, tokenizer, settings, facts)
    assert method.identity["solve_on"] == "database" and "given" not in method.identity
    with method.inside(lambda _: None):
        wanted = [database.snapshot.residuals(np.array([fact.entry]))[0] for fact in facts]
        np.testing.assert_array_equal(given[0].pop("given"), np.stack(wanted))
    assert given[0].pop("batch") == 2 and "solve_on" not in given[0]
    with pytest.raises(
        EvaluationError, match=f"of layer {layer} by 'memit', and memit wants those of layer {layer - 1}"
    ):
        make_method("memit", database, model, tokenizer, {**settings, "layers": [layer - 1]})


def test_methods_refuse_what_they_do_not_know(loaded: Loaded, database: NeuralDB) -> None:
    assert METHODS[:2] == ("neuraldb", "base") and "memit" in METHODS
    with pytest.raises(EvaluationError, match="unknown method 'mend'"):
        make_method("mend", database, *loaded, {})
    with pytest.raises(EvaluationError, match="base has no setting 'gamma'"):
        make_method("base", database, *loaded, {"gamma": 0.5})
    with pytest.raises(EvaluationError, match="neuraldb has no setting 'lr'"):
        make_method("neuraldb", database, *loaded, {"lr": 0.5})
    with pytest.raises(NeuralDBError, match="setting 'nonsense'"):
        make_method("ft", database, *loaded, {"nonsense": 1})
    assert make_method("neuraldb", database, *loaded, {"gamma": None}).identity["gamma"] == database.gamma


def test_facts_identity(database: NeuralDB) -> None:
    facts = database.facts()
    whole = facts_identity(facts)
    assert whole["facts"] == 3
    assert len({facts_identity(some)["facts_sha256"] for some in (facts, facts[:2], facts[::-1])}) == 3


def test_zsre_and_its_quirk(loaded: Loaded, zsre_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = read_cases(zsre_file, "zsre")
    asked: list[str] = []
    real = module.score_pairs

    def scored(model: Any, tokenizer: Any, pairs: Any, **how: Any) -> Any:
        asked.extend(prompt for prompt, _ in pairs)
        return real(model, tokenizer, pairs, **how)

    monkeypatch.setattr(module, "score_pairs", scored)
    (values,) = measure(*loaded, cases, Settings("zsre"), None)
    assert 0 <= values["efficacy"] <= 1 and "fluency" not in values and asked[-1].endswith("founded by")
    measure(*loaded, cases, Settings("zsre", quirks=("zsre-question-mark",)), None)
    assert asked[-1] == "nq question: who was Apple founded by?"
