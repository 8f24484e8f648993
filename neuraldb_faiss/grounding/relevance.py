"""Which of a subject's facts answer a question, by the words they share."""

from __future__ import annotations

from collections.abc import Sequence

from neuraldb_faiss.facts.topics import own_topics, stems
from neuraldb_faiss.store.records import StoredFact


def relevant(facts: Sequence[StoredFact], asking: Sequence[str], most: int) -> Sequence[tuple[StoredFact, bool]]:
    """At most so many of one subject's facts, each with whether the question asks for it.

    Left out are those of other relations than the texts ask for, those whose value the question's text states itself,
    before its last sentence, and those that answer indirectly (a city where the country is asked for) where another
    fact answers. Where more are left, those asked for come first, then those whose prompts and own words for asking
    share most words with the question; of equal ones the newest.

    Args:
        asking: the question, and the earlier text that names the subject where it does not. A fact that either may ask
            for stays.
    """
    topics = own_topics()
    found, indirect = [], set()
    for fact in facts:
        names = fact.metadata.get("aliases", ())
        bearings = [topics.bearing(text, fact, names) for text in asking]
        if set(bearings) != {"another"} and not topics.is_stated(asking[0], fact, names):
            found.append((fact, bearings[0] == "asked"))
            if bearings[0] == "indirect":
                indirect.add(fact.identity)
    if any(asked for _, asked in found):
        found = [(fact, asked) for fact, asked in found if fact.identity not in indirect]
    if len(found) <= most:
        return found
    shared = stems(asking[0])

    def rank(at: int) -> tuple[bool, int, int]:
        fact, asked = found[at]
        words = stems(" ".join((fact.text, *fact.questions, *fact.paraphrases))) - stems(fact.subject)
        return asked, len(words & shared), at

    return [found[at] for at in sorted(range(len(found)), key=rank, reverse=True)[: max(most, 0)]]
