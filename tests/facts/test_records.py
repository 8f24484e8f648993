"""Each format's record as a Fact, and the formats told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact, read_facts

Reader = Callable[..., Fact]

NESTED = {
    "case_id": 3,
    "pararel_idx": 9,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Welsh", "id": "Q9309"},
        "target_true": {"str": "Greek", "id": "Q9129"},
        "subject": "Ann Example",
    },
    "paraphrase_prompts": ["Ann Example speaks"],
    "neighborhood_prompts": ["Bob Example speaks"],
    "attribute_prompts": ["Cy Example speaks"],
    "generation_prompts": ["Ann Example was born in"],
}
FLAT = {
    "case_id": 3,
    "prompt": "The mother tongue of Ann Example is",
    "target_new": "Welsh",
    "subject": "Ann Example",
    "ground_truth": "Greek",
    "rephrase_prompt": "Ann Example speaks",
    "locality_prompt": "Bob Example speaks",
    "locality_ground_truth": "Greek",
}
ZSRE = {
    "subject": "Example Games",
    "src": "When did Example Games begin?",
    "pred": "1990",
    "rephrase": "When were Example Games founded?",
    "alt": "2006",
    "answers": ["1998", "in 1998"],
    "loc": "nq question: who sings",
    "loc_ans": "The String",
}
QUESTION = {
    "relation": "P17",
    "split": "dev",
    "subject": "Exampleton",
    "question": "Which country is Exampleton in?",
    "answers": ["France", "FR"],
}


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    def reader(record: Any, format: str = "auto") -> Fact:
        path = tmp_path / "r.jsonl"
        path.write_text(json.dumps(record))
        return next(read_facts(path, format))

    return reader


@pytest.mark.parametrize("format", ["auto", "counterfact"])
def test_counterfact_nested(read: Reader, format: str) -> None:
    assert read(NESTED, format) == Fact(
        "Ann Example",
        "The mother tongue of {} is",
        "Welsh",
        target_true="Greek",
        relation="P103",
        source="r.jsonl",
        metadata={
            "case_id": 3,
            "pararel_idx": 9,
            "paraphrase_prompts": ["Ann Example speaks"],
            "neighborhood_prompts": ["Bob Example speaks"],
            "attribute_prompts": ["Cy Example speaks"],
            "generation_prompts": ["Ann Example was born in"],
            "target_id": "Q9309",
            "target_true_id": "Q9129",
        },
    )


@pytest.mark.parametrize("format", ["auto", "counterfact"])
def test_counterfact_flat(read: Reader, format: str) -> None:
    fact = read(FLAT, format)
    assert fact == Fact(
        "Ann Example",
        "The mother tongue of Ann Example is",
        "Welsh",
        target_true="Greek",
        source="r.jsonl",
        metadata={
            "case_id": 3,
            "paraphrase_prompts": ["Ann Example speaks"],
            "neighborhood_prompts": ["Bob Example speaks"],
            "neighborhood_truth": ["Greek"],
        },
    )
    assert fact.identity == read(NESTED).identity


def test_counterfact_flat_with_lists(read: Reader) -> None:
    fact = read({**FLAT, "ground_truth": ["Greek", "Hellenic"], "rephrase_prompt": ["p", "q"]})
    assert fact.target_true == "Greek"
    assert fact.metadata["target_true_aliases"] == ["Hellenic"]
    assert fact.metadata["paraphrase_prompts"] == ["p", "q"]


@pytest.mark.parametrize("format", ["auto", "zsre"])
def test_zsre(read: Reader, format: str) -> None:
    assert read(ZSRE, format) == Fact(
        "Example Games",
        "When did Example Games begin?",
        "2006",
        target_true="1998",
        source="r.jsonl",
        metadata={
            "pred": "1990",
            "target_true_aliases": ["in 1998"],
            "paraphrase_prompts": ["When were Example Games founded?"],
            "neighborhood_prompts": ["nq question: who sings"],
            "neighborhood_truth": ["The String"],
        },
    )


@pytest.mark.parametrize("alt", [None, "", " "])
def test_zsre_without_an_alternative(read: Reader, alt: str | None) -> None:
    fact = read({**ZSRE, "alt": alt})
    assert (fact.target, fact.target_true) == ("1998", None)
    assert fact.metadata["aliases"] == ["in 1998"]


@pytest.mark.parametrize("format", ["auto", "questions"])
def test_questions(read: Reader, format: str) -> None:
    assert read(QUESTION, format) == Fact(
        "Exampleton",
        "Which country is Exampleton in?",
        "France",
        relation="P17",
        source="r.jsonl",
        metadata={"split": "dev", "aliases": ["FR"]},
    )


@pytest.mark.parametrize(
    ("record", "format", "rule"),
    [
        ({**NESTED, "requested_rewrite": []}, "auto", "requested_rewrite is of type list"),
        ({"requested_rewrite": {"prompt": "{} is"}}, "auto", "field 'subject' is missing"),
        ({**FLAT, "subject": None}, "auto", "field 'subject' is missing"),
        ({**FLAT, "rephrase_prompt": 7}, "auto", "field 'rephrase_prompt' must be a string or a list"),
        ({**FLAT, "target_new": 7}, "auto", "the target is of type int"),
        ({**ZSRE, "alt": None, "answers": []}, "auto", "neither alt nor answers gives a target"),
        ({**QUESTION, "answers": []}, "auto", "answers gives no target"),
        (QUESTION, "zsre", "field 'src' is missing"),
        (FLAT, "jsonl", "field 'target' is missing"),
    ],
)
def test_rules(read: Reader, record: Any, format: str, rule: str) -> None:
    with pytest.raises(FactError, match=f"line 1: {rule}"):
        read(record, format)


def test_the_first_good_record_tells_the_format(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in (FLAT, QUESTION)))
    with pytest.raises(FactError, match="line 2: field 'prompt' is missing"):
        list(read_facts(path))
