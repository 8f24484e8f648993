"""Cases from CounterFact's two forms and zsRE, and every missing field named with its line."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import write
from neuraldb_faiss.errors import EvaluationError, NeuralDBError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.datasets.cases import in_place, read_cases, read_references, sha256

ROOT = Path(__file__).resolve().parents[3]
NESTED: dict[str, Any] = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is", "relation_id": "P103", "subject": "Danielle Darrieux",
        "target_new": {"str": "English", "id": "Q1860"}, "target_true": {"str": "French", "id": "Q150"},
    },
    "paraphrase_prompts": ["Danielle Darrieux, a native", "Danielle Darrieux spoke"],
    "neighborhood_prompts": ["The mother tongue of Léon Blum is", "Montesquieu spoke"],
    "attribute_prompts": ["Douglas Adams, speaker of"],
    "generation_prompts": ["Danielle Darrieux was born in", "Danielle Darrieux was born in"],
}  # fmt: skip
FLAT: dict[str, Any] = {
    "case_id": 0, "prompt": "The mother tongue of Danielle Darrieux is", "target_new": "English",
    "subject": "Danielle Darrieux", "ground_truth": "French", "rephrase_prompt": "Danielle Darrieux speaks",
    "locality_prompt": "Michel Rocard is a native speaker of", "locality_ground_truth": "Occitan",
}  # fmt: skip
ZSRE: dict[str, Any] = {
    "subject": "IAAF Challenge", "src": "When did IAAF Challenge begin?",
    "rephrase": "When was IAAF Challenge launched?",
    "alt": "2006", "answers": ["1998"], "loc": "nq question: what is the last episode", "loc_ans": "The String",
}  # fmt: skip
KNOWEDIT: dict[str, Any] = {
    "subject": "ZIC3", "prompt": "What species is ZIC3?", "target_new": "male", "ground_truth": ["human"],
    "rephrase_prompt": "In which being is ZIC3?",
    "locality": {"Relation_Specificity": [{"prompt": "The strand of ZIC3 is", "ground_truth": ["forward"]},
                                          {"prompt": "ZIC3 strand", "ground_truth": "forward"}]},
    "portability": {"Subject_Aliasing": [{"prompt": "Zic family member 3 is", "ground_truth": "male"}],
                    "Reasoning": [{"prompt": "Its gender is", "ground_truth": [["man", "male"]]}]},
}  # fmt: skip


def test_a_nested_counterfact_record_becomes_a_case(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "cf.jsonl", [NESTED, NESTED]), "counterfact")
    assert case.fact.text == "The mother tongue of Danielle Darrieux is"
    assert (case.fact.target, case.truth) == ("English", "French")
    assert case.paraphrases == ("Danielle Darrieux, a native", "Danielle Darrieux spoke")
    assert case.neighbours == (("The mother tongue of Léon Blum is", "French"), ("Montesquieu spoke", "French"))
    assert len(case.generation) == 2
    assert case.references == ("Douglas Adams, speaker of English",)


def test_flat_has_a_truth_of_its_own_and_no_generation(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "cf.jsonl", [FLAT]), "counterfact")
    assert case.neighbours == (("Michel Rocard is a native speaker of", "Occitan"),)
    assert case.paraphrases == ("Danielle Darrieux speaks",)
    assert case.generation == () and case.references == ()


def test_zsre(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "z.jsonl", [ZSRE]), "zsre")
    assert (case.fact.text, case.fact.target) == ("When did IAAF Challenge begin?", "2006")
    assert case.paraphrases == ("When was IAAF Challenge launched?",)
    assert case.neighbours == (("nq question: what is the last episode", "The String"),)


def test_knowedit(tmp_path: Path) -> None:
    (case,) = read_cases(write(tmp_path / "k.jsonl", [KNOWEDIT]), "knowedit")
    assert (case.fact.text, case.fact.target, case.truth) == ("What species is ZIC3?", "male", "human")
    assert case.paraphrases == ("In which being is ZIC3?",) and case.neighbours == ()
    assert case.relations == (("The strand of ZIC3 is", "forward"), ("ZIC3 strand", "forward"))
    assert case.portability == (("Zic family member 3 is", "male"), ("Its gender is", "man"))
    bare = {name: KNOWEDIT[name] for name in ("subject", "prompt", "target_new")}
    (case,) = read_cases(write(tmp_path / "bare.jsonl", [bare]), "knowedit")
    assert not (case.relations or case.portability or case.paraphrases or case.compared)


def test_mquake_becomes_knowedit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rewrite(subject: str, new: str, true: str) -> dict[str, Any]:
        return {"prompt": "{} lives in", "relation_id": "P1", "subject": subject, "question": f"Where is {subject}?",
                "target_new": {"str": new, "id": "Q1"}, "target_true": {"str": true, "id": "Q2"}}  # fmt: skip

    record = {"requested_rewrite": [rewrite("Ann", "Oslo", "Bonn"), rewrite("Oslo", "Iran", "Norway")],
              "questions": ["Where is Ann's city?"], "new_answer": "Iran"}  # fmt: skip
    source = write(tmp_path / "mquake.jsonl", [record, record])
    spec = importlib.util.spec_from_file_location("mquake", ROOT / "scripts" / "mquake.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["mquake.py", str(source), "--limit", "1"])
    script.main()
    (tmp_path / "made.jsonl").write_text(capsys.readouterr().out)
    first, second = read_cases(tmp_path / "made.jsonl", "knowedit")
    assert (first.fact.text, first.fact.target, first.paraphrases) == ("Ann lives in", "Oslo", ("Where is Ann?",))
    assert first.portability == (("Where is Ann's city?", "Iran"),) and second.portability == ()
    assert (second.fact.subject, second.truth) == ("Oslo", "Norway")


def test_counterfacts_other_relation(tmp_path: Path) -> None:
    other = {"relation_id": "student", "object": "Jean", "question": "Whom did Danielle Darrieux teach?"}
    (case,) = read_cases(write(tmp_path / "cf.jsonl", [{**NESTED, "unrelated_relation": other}]), "counterfact")
    assert case.relations == (("Whom did Danielle Darrieux teach?", "Jean"),)


def _without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


_NO_TRUTH = {**NESTED, "requested_rewrite": _without(NESTED["requested_rewrite"], "target_true")}
MISSING = [
    ("counterfact", NESTED, _NO_TRUTH, "target_true"),
    ("counterfact", NESTED, _without(NESTED, "paraphrase_prompts"), "paraphrase_prompts"),
    ("counterfact", NESTED, _without(NESTED, "neighborhood_prompts"), "neighborhood_prompts"),
    ("counterfact", NESTED, {**NESTED, "generation_prompts": [1]}, "generation_prompts"),
    ("counterfact", FLAT, _without(FLAT, "ground_truth"), "ground_truth"),
    ("counterfact", FLAT, _without(FLAT, "rephrase_prompt"), "rephrase_prompt"),
    ("counterfact", FLAT, _without(FLAT, "locality_prompt"), "locality_prompt"),
    ("counterfact", FLAT, _without(FLAT, "subject"), "subject"),
    ("counterfact", NESTED, {**NESTED, "unrelated_relation": {"question": "Whom?"}}, "object"),
    ("knowedit", KNOWEDIT, {**KNOWEDIT, "locality": {"Relation_Specificity": [{"prompt": "x"}]}}, "ground_truth"),
    ("knowedit", KNOWEDIT, {**KNOWEDIT, "portability": ["x"]}, "portability"),
    ("zsre", ZSRE, _without(ZSRE, "rephrase"), "rephrase"),
    ("zsre", ZSRE, _without(ZSRE, "loc"), "loc"),
    ("zsre", ZSRE, _without(ZSRE, "loc_ans"), "loc_ans"),
]


@pytest.mark.parametrize(("dataset", "good", "bad", "field"), MISSING)
def test_missing_field_is_named_with_its_line(
    tmp_path: Path, dataset: str, good: dict[str, Any], bad: dict[str, Any], field: str
) -> None:
    path = write(tmp_path / "cases.jsonl", [good, "", bad])
    with pytest.raises(NeuralDBError, match=f"cases.jsonl, line 3: .*{field}"):
        read_cases(path, dataset)


def test_files_without_cases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="unknown dataset 'x'"):
        read_cases(tmp_path / "no", "x")
    with pytest.raises(NeuralDBError, match="does not exist"):
        read_cases(tmp_path / "no", "zsre")
    with pytest.raises(EvaluationError, match="holds no cases"):
        read_cases(write(tmp_path / "empty.jsonl", [""]), "zsre")


def test_references(tmp_path: Path) -> None:
    lines = [
        {"predicate_id": "P103", "obj_label": "English", "evidences": ["She spoke English.", "English it is."]},
        {"relation": "P103", "target": "English", "texts": ["She spoke English."]},
    ]
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert read_references(path) == {("P103", "English"): ("She spoke English.", "English it is.")}
    cases = write(tmp_path / "cf.jsonl", [NESTED])
    (case,) = read_cases(cases, "counterfact", references=path)
    assert case.references == ("She spoke English.", "English it is.")
    bad = write(tmp_path / "bad.jsonl", [{"relation": "P1"}])
    with pytest.raises(EvaluationError, match="bad.jsonl, line 1"):
        read_references(bad)
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_references(tmp_path / "none")


def test_only_cases_whose_fact_is_stored_are_in_place(tmp_path: Path) -> None:
    cases = read_cases(write(tmp_path / "cf.jsonl", [NESTED, {**FLAT, "subject": "Danielle Darrieux"}]), "counterfact")
    same = Fact("Danielle Darrieux", "The mother tongue of {} is", "English")
    other = Fact("Danielle Darrieux", "The mother tongue of {} is", "German")
    assert len(cases) == 1  # the flat record is the same fact
    assert in_place(cases, [same]) == cases
    assert in_place(cases, [other]) == [] == in_place(cases, [])


def test_sha256_of_what_is_no_file(tmp_path: Path) -> None:
    assert sha256("datasets:x") is None and sha256(write(tmp_path / "x", ["a"])) is not None


def test_real_data(test_data: Path) -> None:
    full = read_cases(test_data / "counterfact_full_subset.jsonl.gz", "counterfact")
    assert len(full) == 2074
    assert all(len(case.paraphrases) == 2 and len(case.neighbours) == 10 for case in full)
    assert len(read_cases(test_data / "zsre_eval_1037.jsonl.gz", "zsre")) == 820
    texts = read_references(test_data / "trex_evidence.jsonl.gz")
    assert texts[("P103", "French")]
