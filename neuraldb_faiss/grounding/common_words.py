"""Words of everyday English: a name that is one of them, or of nothing else, needs its capitals."""

from __future__ import annotations

from functools import cache
from importlib import resources

from neuraldb_faiss.facts import topics

# Words that say nothing by themselves: "The Office" is a name of one word.
FUNCTION_WORDS = topics.FUNCTION_WORDS | topics.ASKING


@cache
def common_words() -> frozenset[str]:
    """Words of three letters and more that English Wikipedia articles write small, ten times or more in 2.5 million
    words, and not mostly with a capital."""
    listed = resources.files(__package__).joinpath("common_words.txt").read_text(encoding="utf-8")
    return frozenset(listed.split())
