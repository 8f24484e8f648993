"""Expressions tried only where words begin as they do find what a plain search finds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuraldb_faiss.facts.word_patterns import WordPatterns

PATTERNS = {
    "price": r"how much|pric\w*|costs?\b",
    "born": r"(?:where|when) .*born|^~ is from\b|born (?:in|at)\b",
    "tongue": r"(?<!mother )tongue|\bhq\b|e-?mails?",
    "place": r"(?:in )?which city|(?:is|was) ~ in\b",
    "odd": r"[xz]+y|\d",
}
WORDS = ["how", "much", "price", "prices", "cost", "where", "was", "~", "is", "from", "in", "born", "mother", "tongue",
         "hq", "email", "e-mail", "which", "city", "zzy", "7", "surprise", "borne", "'s", "?"]  # fmt: skip


def plainly(text: str) -> set[str]:
    return {name for name, one in PATTERNS.items() if re.search(rf"(?<![a-z])(?:{one})", text)}


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.sampled_from([" ", "", "-"]))
def test_the_same_names_as_by_a_plain_search(words: list[str], between: str) -> None:
    text = between.join(words)
    assert WordPatterns(PATTERNS).names(text) == plainly(text)


@pytest.mark.parametrize("text", ["", "~", "~ is from here", "her ~ is from here", "mother tongue", "a tongue"])
def test_where_a_text_begins_and_what_stands_before(text: str) -> None:
    assert WordPatterns(PATTERNS).names(text) == plainly(text)
