"""Which spellings name a subject in plain text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.stated import Stated
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.guard.folding import fold_bytes, fold_text

SUBJECTS = [
    "Helio X2", "Nokia", "Turkey", "Apple Watch", "The Office", "Take That", "It", "WHO", "iPhone", "Café Morgenrot",
    "New York", "New York Times", "Oz", "日本", "Straße", "Fact",
]  # fmt: skip
GROUNDER = Grounder(Stated([Fact(name, "{} is", "x") for name in SUBJECTS], floors={"Fact": 0.9}))


def named(text: str) -> set[str]:
    return {fact.subject for fact in GROUNDER.ground(text, max_facts=100).facts}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # as the fact writes it; a genitive and a plural; no other ending, and no part of a word
        ("Nokia's head. Nokias. NokiaX and Nokian, xNokia", {"Nokia"}),
        ("NokiaX and Nokian, xNokia", set()),
        ("Oz is far. Ozawa and Ozs are not", {"Oz"}),
        ("Ozs and Ozawa", set()),
        ("(Nokia)", {"Nokia"}), ("Nokia", {"Nokia"}), ("a-Nokia-b", {"Nokia"}),
        # several words, one of them rare: any case, any white space
        ("price of helio x2 please", {"Helio X2"}), ("Ann has a HELIO\n x2.", {"Helio X2"}),
        ("The CAFE\u0301 MORGENROT of Ann", {"Café Morgenrot"}), ("caf\u00e9 morgenrot", {"Café Morgenrot"}),
        # one rare word: any case where names have no capitals
        ("Where is nokia from?", {"Nokia"}), ("I say nokia. Say it. is it?", {"Nokia"}),
        ("I met Ann at nokia.", set()), ("I met Ann at NOKIA.", {"Nokia"}), ("the iphone", {"iPhone"}),
        ("strasse", {"Straße"}),
        # common words
        ("I ate turkey", set()), ("TURKEY", set()), ("Turkey", {"Turkey"}), ("in Turkey", {"Turkey"}),
        ("an apple watch", {"Apple Watch"}), ("Ask Ann for an apple watch", set()),
        ("the office is closed", set()), ("Who wrote The Office?", {"The Office"}), ("take that", set()),
        ("who is it", set()), ("Who is it", set()), ("the WHO says", {"WHO"}),
        ("It rains. It rains", set()), ("Who wrote It?", {"It"}),
        # measured by calibration: only as written
        ("fact", set()), ("FACT", set()), ("Fact", {"Fact"}),
        # the longest name of a place counts
        ("the New York Times", {"New York Times"}), ("the New York Times of New York", {"New York", "New York Times"}),
        # scripts without spaces
        ("私は日本人です", {"日本"}),
        ("Nokai and Nokla", set()), ("", set()), (" \n", set()), ("\0Nokia\0", {"Nokia"}),
    ],
)  # fmt: skip
def test_spellings_that_name_a_subject_are_found(text: str, found: set[str]) -> None:
    assert named(text) == found


def test_a_longer_name_whose_facts_ended_hides_nothing() -> None:
    facts = [Fact("New York", "{} is", "x"), Fact("New York Times", "{} is", "y")]
    assert [fact.subject for fact in Grounder(Stated(facts, ended=[1])).ground("the New York Times").facts] == [
        "New York"
    ]


def test_other_names_of_a_fact_count() -> None:
    facts = [
        Fact("Eiffel Tower", "{} is", "x", metadata={"aliases": ["La dame de fer"]}),
        Fact("Civic", "{}s are", "y"),
    ]
    assert len(Grounder(Stated(facts)).ground("la dame de fer; Civics").facts) == 2


def test_names_across_pieces_of_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuraldb_faiss.grounding.mentions._STOPS", 2)
    assert named("at the New York Times, a Helio X2 and Nokia") == {"New York Times", "Helio X2", "Nokia"}


@given(st.text(max_size=60) | st.text("ﬀİß\u0301a A\n\u2028日\ud7a3\0", max_size=40))
def test_text_folds_as_its_bytes_do(text: str) -> None:
    codes, cases, _ = fold_bytes(text.encode())
    assert all(np.array_equal(one, two) for one, two in zip(fold_text(text), (codes, cases), strict=True))
