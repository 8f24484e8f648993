"""Kinds of answers: what a question wants, what a target is, and which of the two go together."""

from __future__ import annotations

import pytest

from neuraldb_faiss.facts.kinds import (
    answers_indirectly,
    aspects_of_target,
    aspects_of_values,
    cannot_answer,
    target_kinds,
    wanted_kinds,
)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("which country is {} in?", {"country"}),
        ("the country in which {} lies is", {"country"}),
        ("when was {} founded?", {"time"}),
        ("in what year was {} born?", {"time"}),
        ("how many people work at {}?", {"number"}),
        ("who runs {}?", {"agent"}),
        ("{}, whose headquarters are in", set()),
        ("where is {}?", {"place"}),
        ("what languages does {} speak?", {"language"}),
        ("which programming language is {} written in?", set()),
        ("who is {}?", set()),
        ("tell me about {}.", set()),
    ],
)
def test_what_a_text_wants(text: str, kinds: set[str]) -> None:
    assert wanted_kinds(text) == kinds


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        ("the Netherlands", {"country"}),
        ("Catalan", {"language"}),
        ("4 April 1809", {"time"}),
        ("9 am to 5 pm", {"time"}),
        ("14 Harbour Street, Gdansk", set()),
        ("$249", {"number"}),
        ("+47 555 0182", {"contact", "number"}),
        ("violin", {"instrument"}),
        ("Ann Lee", set()),
    ],
)
def test_what_a_target_is(target: str, kinds: set[str]) -> None:
    assert target_kinds(target) == kinds


def test_a_target_of_no_known_kind_is_judged_by_its_prompt() -> None:
    wanted = frozenset({"country"})
    assert not cannot_answer(wanted, "Freedonia", "the country of {} is", frozenset({"located"}))
    assert cannot_answer(wanted, "Maryland", "{} can be found in", frozenset({"located"}))
    assert not cannot_answer(wanted, "Maryland", "{} frobnicates", frozenset())
    assert not cannot_answer(frozenset(), "Maryland", "{} can be found in", frozenset({"located"}))


def test_a_place_answers_for_its_country_indirectly() -> None:
    country, located = frozenset({"country"}), frozenset({"located"})
    assert answers_indirectly(country, "Maryland", "{} can be found in", located)
    assert answers_indirectly(frozenset({"continent"}), "Norway", "{} is a citizen of", frozenset({"nationality"}))
    assert not answers_indirectly(country, "Dutch", "{} can be found in", located), "known to be no place"
    assert not answers_indirectly(country, "Ann Lee", "the ceo of {} is", frozenset({"ceo"}))
    assert not answers_indirectly(frozenset({"time"}), "Maryland", "{} can be found in", located)


def test_values_in_a_question_tell_its_aspect() -> None:
    assert "occupation" in aspects_of_values("is {} a baker or a doctor?")
    assert "language-work" in aspects_of_values("is {} in dutch?")
    assert aspects_of_values("is {} still in lima?") == {"located"}
    assert aspects_of_values("which baker knows {}?") == frozenset() == aspects_of_values("is {} nice?")


def test_a_target_tells_aspects_where_the_prompt_tells_none_of_its_kind() -> None:
    assert "language-person" in aspects_of_target("Dutch", frozenset())
    assert aspects_of_target("Dutch", frozenset({"language-work"})) == set()
    assert aspects_of_target("Norway", frozenset()) == set()
