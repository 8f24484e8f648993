"""fold: duplicates, conflicts, ids."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraldb_faiss.errors import ConflictError, FactError
from neuraldb_faiss.facts import Fact, fold


def fact(subject: str, target: str, **more: str) -> Fact:
    return Fact(subject, "{} is", target, **more)


def targets(facts: list[Fact]) -> list[str]:
    return [f"{one.subject}{one.target}" for one in facts]


def test_duplicates_are_folded() -> None:
    one = fact("a", "x")
    folded = fold([one, fact("b", "x"), one, Fact("a", "a  is", " x", source="later")])
    assert folded.facts == [one, fact("b", "x")]
    assert (folded.duplicates, folded.conflicts) == (2, 0)


def test_conflicts_are_an_error_that_lists_ten() -> None:
    facts = [fact(f"s{i:02}", target) for i in range(12) for target in ("x", "y")]
    with pytest.raises(ConflictError) as caught:
        fold(facts)
    message = str(caught.value)
    assert message.startswith("conflicts: 12 ")
    assert "'s00 is': 'x' or 'y'; 's01 is': 'x' or 'y'" in message
    assert "s09" in message and "s10" not in message
    assert "\n" not in message


@pytest.mark.parametrize(("choice", "kept"), [("first", ["ax", "bx"]), ("last", ["az", "bx"])])
def test_one_of_several_targets_is_kept_in_the_first_ones_place(choice: str, kept: list[str]) -> None:
    folded = fold([fact("a", "x"), fact("b", "x"), fact("a", "y"), fact("a", "x"), fact("a", "z")], choice)
    assert targets(folded.facts) == kept
    assert (folded.duplicates, folded.conflicts) == (1, 1)


def test_an_unknown_choice_on_conflict_is_refused() -> None:
    with pytest.raises(FactError, match="choose one of error, first, last"):
        fold([], "both")


def test_an_id_stands_for_one_fact() -> None:
    with pytest.raises(FactError, match="id 'n1' is given to two facts"):
        fold([fact("a", "x", id="n1"), fact("b", "x", id="n1")])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=12))
def test_against_a_plain_count(pairs: list[tuple[str, str]]) -> None:
    facts = [fact(*pair) for pair in pairs]
    subjects = list(dict.fromkeys(subject for subject, _ in pairs))
    first, last = fold(facts, "first"), fold(facts, "last")
    assert targets(first.facts) == [next(s + t for s, t in pairs if s == subject) for subject in subjects]
    pairs.reverse()
    assert targets(last.facts) == [next(s + t for s, t in pairs if s == subject) for subject in subjects]
    for folded in (first, last):
        assert folded.duplicates == len(pairs) - len(set(pairs))
        assert folded.conflicts == sum(len({t for s, t in pairs if s == subject}) > 1 for subject in subjects)
