"""Which of a subject's facts a question is about, by the words they share."""

from __future__ import annotations

import re
from collections.abc import Sequence

from neuraldb_faiss.grounding.common_words import FUNCTION_WORDS
from neuraldb_faiss.store.records import StoredFact

_WORD = re.compile(r"[^\W_]+")
_STEM = 5  # letters that words of one stem share


def most_relevant(facts: Sequence[StoredFact], question: str, most: int) -> Sequence[StoredFact]:
    """At most so many of the facts: where there are more, those whose prompts and own words for asking share most words
    with the question; of equal ones the newest."""
    if len(facts) <= most:
        return facts
    asked = _stems(question)

    def rank(at: int) -> tuple[int, int]:
        fact = facts[at]
        words = _stems(" ".join((fact.text, *fact.questions, *fact.paraphrases))) - _stems(fact.subject)
        return len(words & asked), at

    return [facts[at] for at in sorted(range(len(facts)), key=rank, reverse=True)[: max(most, 0)]]


def _stems(text: str) -> set[str]:
    return {word[:_STEM] for word in _WORD.findall(text.casefold()) if word not in FUNCTION_WORDS}
