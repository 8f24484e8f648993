"""Fact: its rules, its text, its identity, its JSON form."""

from __future__ import annotations

import copy
import json
import pickle
import unicodedata
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from neuraldb_faiss.errors import FactError, NeuralDBError
from neuraldb_faiss.facts import Fact

characters = st.characters(exclude_categories=["Cs"])
words = st.text(characters, min_size=1, max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def facts(draw: st.DrawFn) -> Fact:
    subject, left, right = draw(words), draw(st.text(characters)), draw(st.text(characters))
    middle = draw(st.sampled_from(["{}", subject]))
    try:
        return Fact(
            subject,
            left + middle + right,
            draw(words),
            id=draw(st.just("") | words),
            target_true=draw(st.none() | words),
            relation=draw(st.none() | words),
            source=draw(st.none() | words),
            metadata=draw(st.dictionaries(words, json_values, max_size=3)),
        )
    except FactError:
        assume(False)
        raise


@given(facts())
def test_json_round_trip(fact: Fact) -> None:
    back = Fact.from_dict(json.loads(json.dumps(fact.to_dict())))
    assert back == fact
    assert (back.text, back.template, back.subject_span) == (fact.text, fact.template, fact.subject_span)
    assert hash(back) == hash(fact)


@given(facts())
def test_text_template_and_span_agree(fact: Fact) -> None:
    start, end = fact.subject_span
    assert fact.text[start:end] == fact.subject
    assert fact.template.count("{}") == 1
    assert fact.template[:start] + fact.subject + fact.template[start + 2 :] == fact.text


@given(facts())
def test_identity_knows_neither_form_nor_target(fact: Fact) -> None:
    same = Fact(fact.subject, fact.template, "another target", id="x")
    assert same.identity == fact.identity
    assert len(fact.identity) == 20 and int(fact.identity, 16) >= 0


@given(words, st.sampled_from(["NFC", "NFD"]), st.sampled_from([" ", "\n", "\u00a0 \t"]))
def test_identity_folds_unicode_and_white_space(word: str, form: Any, space: str) -> None:
    assume(word.strip() and "{" not in word and "}" not in word)
    plain = Fact(f"A {word} B", "the {} is", "x")
    other = Fact(unicodedata.normalize(form, f"A{space}{word}{space}B"), f" the{space}{{}}{space}is ", "x")
    assert other.identity == plain.identity


def test_identity_is_fixed_for_ever() -> None:
    # stored in databases: a change here orphans every one of them
    fact = Fact("Danielle Darrieux", "The mother tongue of {} is", "English")
    assert fact.identity == "13678fc33dad5c6672a7"


def test_identity_tells_subject_from_template() -> None:
    assert Fact("a", "{} b c", "x").identity != Fact("a b", "{} c", "x").identity
    assert Fact("a", "{} is", "x").identity != Fact("A", "{} is", "x").identity


@pytest.mark.parametrize(
    ("subject", "prompt", "template"),
    [
        ("Paris", "Paris is in", "{} is in"),
        ("Java", "JavaScript is not Java", "JavaScript is not {}"),
        ("art", "Mozart was born", "Moz{} was born"),  # no word of its own: the one place there is
        ("C++", "C++ was made by", "{} was made by"),
        ("{x", "a {x} b", "a {}} b"),
        ("Rome", "{1} of {} in {2}", "{1} of {} in {2}"),
        ("東京", "日本の東京は", "日本の{}は"),
        ("0:", "0:{}", "0:{}"),
        ("Cafe", "Cafe\u0301 and Cafe", "Cafe\u0301 and {}"),
    ],
)
def test_where_the_subject_stands(subject: str, prompt: str, template: str) -> None:
    fact = Fact(subject, prompt, "x")
    assert fact.template == template
    start, end = fact.subject_span
    assert fact.text[start:end] == subject
    assert fact.text == template[:start] + subject + template[start + 2 :]


@pytest.mark.parametrize(
    ("subject", "prompt", "target", "rule"),
    [
        (" ", "{} is", "x", "the subject is empty"),
        ("Paris", "\n", "x", "the prompt is empty"),
        ("Paris", "{} is", " ", "the target is empty"),
        ("Paris", "London is", "x", "subject 'Paris' is not in the prompt 'London is'"),
        ("Paris", "Paris, not Paris", "x", "is in the prompt 2 times"),
        ("aa", "xaaay", "x", "is in the prompt 2 times"),
        ("Paris", "{} and {}", "x", "the prompt holds {} 2 times"),
        ("Paris", "{} is not Paris", "x", "the prompt holds both {} and subject 'Paris'"),
        ("a a", "{} a", "x", "the prompt holds both {} and subject 'a a'"),
        ("P{}s", "P{}s is", "x", "subject 'P{}s' holds {}"),
        ("Paris", "{} is", 7, "the target is of type int; it must be a string"),
        (None, "{} is", "x", "the subject is null"),
        ("P\ud800", "{} is", "x", "half of a surrogate pair"),
    ],
)
def test_a_fact_that_breaks_a_rule_is_refused_in_one_line(subject: Any, prompt: Any, target: Any, rule: str) -> None:
    with pytest.raises(FactError) as caught:
        Fact(subject, prompt, target)
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, NeuralDBError)


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ([], "metadata is of type list"),
        ({"a": {1: 2}}, "metadata.a has a key of type int"),
        ({"a": [float("nan")]}, "metadata.a holds nan"),
        ({"a": {1}}, "metadata.a holds a value of type set"),
        ({"a": ["b", {"c": "\ud800"}]}, r"metadata.a.c is '\\ud800', which holds half of a surrogate pair"),
        ({"a": {"\udc80": 1}}, r"metadata.a has the key '\\udc80', which holds half"),
        ({"a": 10**6000}, "metadata.a has more than 4,000 digits"),
        ({"a": ["x" * (1 << 20)] * 5}, "the metadata take more than 4,194,304 characters"),
        ({"a": [10**3900] * 2000}, "the metadata take more than"),
    ],
)
def test_metadata_is_json(metadata: Any, rule: str) -> None:
    with pytest.raises(FactError, match=rule):
        Fact("a", "{}", "x", metadata=metadata)


def test_metadata_nested_too_deep() -> None:
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(FactError, match="nested more than"):
        Fact("a", "{}", "x", metadata={"deep": deep})


def test_a_fact_does_not_change() -> None:
    given_metadata = {"paraphrase_prompts": ["b"], "pair": (1, 2)}
    fact = Fact(" a ", " {} is ", " x\n", metadata=given_metadata)
    given_metadata["paraphrase_prompts"].append("c")
    assert (fact.subject, fact.prompt, fact.target) == ("a", "{} is", "x")
    assert fact.metadata == {"paraphrase_prompts": ["b"], "pair": [1, 2]}
    with pytest.raises(FrozenInstanceError):
        fact.target = "y"  # type: ignore[misc]


def test_copies_are_equal() -> None:
    fact = Fact("Paris", "In Paris is", "x", metadata={"a": [1]})
    for other in (copy.deepcopy(fact), pickle.loads(pickle.dumps(fact)), replace(fact)):
        assert other == fact and other.subject_span == (3, 8) and other.identity == fact.identity


def test_id_defaults_to_the_identity() -> None:
    fact = Fact("a", "{} is", "x")
    assert fact.id == fact.identity
    assert Fact("a", "{} is", "x", id="mine").id == "mine"


def test_json_form_leaves_out_what_is_empty() -> None:
    fact = Fact("a", "{} is", "x", target_true="", metadata={})
    assert fact.to_dict() == {"id": fact.identity, "subject": "a", "prompt": "{} is", "target": "x"}


def test_unknown_fields_go_to_the_metadata() -> None:
    record: dict[str, Any] = {"subject": "a", "prompt": "{} is", "target": "x", "metadata": {"n": 1}}
    record |= {"aliases": ["y"], "none": None}
    assert Fact.from_dict(record).metadata == {"n": 1, "aliases": ["y"]}
    with pytest.raises(FactError, match="field 'n' is given twice"):
        Fact.from_dict({**record, "n": 2})


def test_missing_field() -> None:
    with pytest.raises(FactError, match="field 'target' is missing"):
        Fact.from_dict({"subject": "a", "prompt": "{} is"})
