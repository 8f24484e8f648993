"""The readers on real data, where NEURALDB_TEST_DATA names its folder; and on the project's own examples."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuraldb_faiss.errors import ConflictError
from neuraldb_faiss.facts import BadRecord, fold, read_facts

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "facts.jsonl"


def real(name: str) -> Path:
    folder = os.environ.get("NEURALDB_TEST_DATA")
    if not folder:
        pytest.skip("NEURALDB_TEST_DATA names no folder with the real data")
    path = Path(folder, f"{name}.jsonl.gz")
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.mark.parametrize(
    ("name", "good", "kept", "conflicts"),
    [
        ("counterfact", 16_919, 16_716, 134),
        ("counterfact_full_subset", 2_074, 2_074, 0),
        ("zsre_eval_1037", 820, 820, 0),
        ("zsre_train_10000", 9_996, 9_996, 0),
        ("zsre_train_1000_original", 1_000, 1_000, 0),
        ("zsre_knowedit_test", 1_029, 1_013, 8),
        ("entityquestions", 220_703, 218_126, 1_468),
    ],
)
def test_every_record_is_read(name: str, good: int, kept: int, conflicts: int) -> None:
    bad: list[BadRecord] = []
    facts = list(read_facts(real(name), on_bad=bad.append))
    assert not bad, str(bad[0])
    folded = fold(facts, "first")
    assert (len(facts), len(folded.facts), folded.conflicts) == (good, kept, conflicts)
    assert all(fact.text[slice(*fact.subject_span)] == fact.subject for fact in facts)


def test_conflicts_are_told() -> None:
    with pytest.raises(ConflictError, match="^conflicts: 134 "):
        fold(read_facts(real("counterfact"), "counterfact"))


def test_bad_records_are_told() -> None:
    bad: list[BadRecord] = []
    assert len(list(read_facts(real("zsre_inverse_relation"), on_bad=bad.append))) == 324
    assert [record.line for record in bad] == [61, 292, 295, 314, 315]
    assert all("is not in the prompt" in record.rule for record in bad)


@pytest.mark.parametrize(
    ("name", "probes"), [("zsre_knowedit_test", 2_058), ("wikidata_counterfact_train", 2_034),
                         ("wikidata_counterfact_test", 5_954), ("wikidata_recent_train", 1_939)]
)  # fmt: skip
def test_locality_becomes_neighbours(name: str, probes: int) -> None:
    facts = list(read_facts(real(name), on_bad=lambda _: None))
    found = [(f.metadata.get("neighborhood_prompts", []), f.metadata.get("neighborhood_truth", [])) for f in facts]
    assert all(len(prompts) == len(truths) for prompts, truths in found)
    assert sum(len(prompts) for prompts, _ in found) == probes


def test_each_example_fact_has_paraphrases_of_its_prompt() -> None:
    facts = fold(read_facts(EXAMPLES)).facts
    assert len(facts) >= 24
    by_subject: dict[str, list[str]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact.template.partition("{}")[0])
        assert fact.target_true and fact.target_true != fact.target and fact.relation
        for prompt in fact.metadata["paraphrase_prompts"]:
            assert fact.subject in prompt and prompt != fact.text
        for prompt in fact.metadata["neighborhood_prompts"]:
            assert fact.subject not in prompt
        assert 1 <= len(fact.metadata["paraphrase_prompts"]) <= 2
        assert 1 <= len(fact.metadata["neighborhood_prompts"]) <= 2
    assert [left for left in by_subject.values() if len(left) > 1] == [["", ""]]  # one pair, one left context
