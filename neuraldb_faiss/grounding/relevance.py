"""Which of a subject's facts answer a question, by the words they share."""

from __future__ import annotations

from collections.abc import Sequence

from neuraldb_faiss.facts.topics import own_topics, stems
from neuraldb_faiss.store.records import StoredFact


def relevant(facts: Sequence[StoredFact], asking: Sequence[str], most: int) -> Sequence[StoredFact]:
    """At most so many of one subject's facts, without those of other relations than the texts ask for.

    Where more are left, those whose prompts and own words for asking share most words with the first text; of equal
    ones the newest.

    Args:
        asking: the question, and the earlier text that names the subject where it does not. A fact that either may ask
            for stays.
    """
    topics = own_topics()
    facts = [
        fact
        for fact in facts
        if not all(topics.is_another(text, fact, fact.metadata.get("aliases", ())) for text in asking)
    ]
    if len(facts) <= most:
        return facts
    asked = stems(asking[0])

    def rank(at: int) -> tuple[int, int]:
        fact = facts[at]
        words = stems(" ".join((fact.text, *fact.questions, *fact.paraphrases))) - stems(fact.subject)
        return len(words & asked), at

    return [facts[at] for at in sorted(range(len(facts)), key=rank, reverse=True)[: max(most, 0)]]
