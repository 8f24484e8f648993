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

NESTED: dict[str, Any] = {
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


@pytest.mark.parametrize("truth", ["<|endoftext|>", ["<|endoftext|>"], "", []])
def test_easyedits_mark_for_no_answer(read: Reader, truth: Any) -> None:
    fact = read({**FLAT, "ground_truth": truth})
    assert fact.target_true is None and "target_true_aliases" not in fact.metadata
    assert read({**FLAT, "ground_truth": ["<|endoftext|>", "Greek"]}).target_true == "Greek"
    if isinstance(truth, str):
        rewrite = {**NESTED["requested_rewrite"], "target_true": {"str": truth}}
        assert read({**NESTED, "requested_rewrite": rewrite}).target_true is None
        with pytest.raises(FactError, match="neither alt nor answers"):
            read({**ZSRE, "alt": None, "answers": [truth]})


def test_memits_flat_form(read: Reader) -> None:
    """A list of requests as MEMIT's code takes it: CounterFact's rewrite without what is around it."""
    fact = read({"case_id": 3, **NESTED["requested_rewrite"]})
    assert (fact.target, fact.target_true, fact.relation) == ("Welsh", "Greek", "P103")
    assert fact.metadata == {"case_id": 3, "target_id": "Q9309", "target_true_id": "Q9129"}
    both = read({**NESTED["requested_rewrite"], "ground_truth": ["Hellenic", "Greek"]})
    assert (both.target_true, both.metadata["target_true_aliases"]) == ("Greek", ["Hellenic"])
    assert read({**FLAT, "target_new": {"str": "Welsh"}, "target_true": "Greek"}).target_true == "Greek"


LOCALITIES = {
    "knowedit": {
        "Relation_Specificity": [
            {"prompt": "Ann was born in", "ground_truth": [["Ulm", "Ulm, Germany"]]},
            {"prompt": "Ann's job is", "ground_truth": ["chess"]},
        ],
        "Forgetfulness": [{"prompt": "Ann speaks, if not Welsh,", "ground_truth": "Greek"}],
    },
    "easyedit": {
        "neighborhood": {"prompt": "Ann was born in", "ground_truth": "Ulm"},
        "distracting": {"prompt": ["Ann's job is", "Ann speaks, if not Welsh,"], "ground_truth": ["chess", "Greek"]},
    },
    "without kinds": [
        {"prompt": "Ann was born in", "ground_truth": "Ulm"},
        {"prompt": "Ann's job is", "ground_truth": "chess"},
        {"prompt": "Ann speaks, if not Welsh,", "ground_truth": "Greek"},
    ],
}


@pytest.mark.parametrize("shape", LOCALITIES)
def test_locality_becomes_neighbours(read: Reader, shape: str) -> None:
    bare = {name: value for name, value in FLAT.items() if not name.startswith("locality")}
    prompts, truths = ["Ann was born in", "Ann's job is", "Ann speaks, if not Welsh,"], ["Ulm", "chess", "Greek"]
    fact = read({**bare, "locality": LOCALITIES[shape]})
    assert fact.metadata["neighborhood_prompts"] == prompts
    assert fact.metadata["neighborhood_truth"] == truths
    assert fact.metadata["locality"] == LOCALITIES[shape], "kept: evaluation tells the kinds apart"
    behind = read({**FLAT, "locality": LOCALITIES[shape]})
    assert behind.metadata["neighborhood_prompts"] == ["Bob Example speaks", *prompts]
    assert behind.metadata["neighborhood_truth"] == ["Greek", *truths]


@pytest.mark.parametrize("empty", [{}, [], {"Relation_Specificity": []}, {"neighborhood": None}])
def test_an_empty_locality_is_none(read: Reader, empty: Any) -> None:
    bare = {name: value for name, value in FLAT.items() if not name.startswith("locality")}
    assert "neighborhood_prompts" not in read({**bare, "locality": empty}).metadata


@pytest.mark.parametrize(
    "broken",
    ["Ann was born in", ["Ann was born in"], {"a": [{"prompt": "Ann was born in"}]},
     {"a": {"prompt": ["p", "q"], "ground_truth": ["x"]}}, {"a": [{"prompt": "p", "ground_truth": []}]},
     {"a": [{"prompt": " ", "ground_truth": "x"}]}],
)  # fmt: skip
def test_a_broken_locality_is_told(read: Reader, broken: Any) -> None:
    with pytest.raises(FactError, match=r"line 1: field 'locality'"):
        read({**FLAT, "locality": broken})


def test_neighbours_without_answers_do_not_mix_with_those_that_have_them(read: Reader) -> None:
    with pytest.raises(FactError, match="'locality_prompt' and 'locality' stand together"):
        read({**FLAT, "locality_ground_truth": None, "locality": LOCALITIES["knowedit"]})


@pytest.mark.parametrize(
    ("aliases", "rule"),
    [("La dame", "aliases is one text, 'La dame'"), ({"a": 1}, "aliases is of type dict"),
     (["La dame", ""], "aliases holds an empty name"), ([" "], "aliases holds an empty name"),
     ([7], "aliases holds a name of type int"), ([None], "aliases holds a name null")],
)  # fmt: skip
def test_aliases_are_a_list_of_names(read: Reader, aliases: Any, rule: str) -> None:
    own = {"subject": "Rome", "prompt": "{} is in", "target": "Peru"}
    for record in (own | {"metadata": {"aliases": aliases}}, own | {"aliases": aliases}, FLAT | {"aliases": aliases}):
        with pytest.raises(FactError, match=f"line 1: {rule}"):
            read(record)
    with pytest.raises(FactError, match=rule):
        Fact("Rome", "{} is in", "Peru", metadata={"aliases": aliases})


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
    assert fact.metadata["target_aliases"] == ["in 1998"], "names of the answer, not of the subject"


@pytest.mark.parametrize("format", ["auto", "questions"])
def test_questions(read: Reader, format: str) -> None:
    assert read(QUESTION, format) == Fact(
        "Exampleton",
        "Which country is Exampleton in?",
        "France",
        relation="P17",
        source="r.jsonl",
        metadata={"split": "dev", "target_aliases": ["FR"]},
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
def test_a_record_that_breaks_a_rule_is_refused_by_its_line(read: Reader, record: Any, format: str, rule: str) -> None:
    with pytest.raises(FactError, match=f"line 1: {rule}"):
        read(record, format)


def test_the_first_good_record_tells_the_format(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in (FLAT, QUESTION)))
    with pytest.raises(FactError, match="line 2: field 'prompt' is missing"):
        list(read_facts(path))
