"""Whether a question is about another relation of a subject than a fact is, told by words alone."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

from neuraldb_faiss.facts.aspects import aspects, masked
from neuraldb_faiss.facts.kinds import (
    answers_indirectly,
    aspects_of_target,
    aspects_of_values,
    cannot_answer,
    wanted_kinds,
)
from neuraldb_faiss.facts.relations import MARK, TARGET, Relation, Relations, own_relations

# Words that say nothing of a relation. "When", "where" and "who" do.
FUNCTION_WORDS = frozenset(
    """
    a about above after again against all also am an and any are as at be because been before being below between both
    but by can could did do does doing down during each every few for further from had has have having he her here hers
    him his how i if in into is it its just me more most my no nor not now of off on once one only or other our ours out
    over own same she should so some such than that the their theirs them then there these they this those through to
    too two under until up us very was we were what which while why will with would yes you your yours
    """.split()  # noqa: SIM905
)
ASKING = frozenset({"when", "where", "who", "whom", "whose"})
# Questions with no other words than these ask for whatever is known.
_OPEN = frozenset(
    """
    anything ask describe description explain fact facts give hello hi information interesting know list paragraph
    please poem say sentence something story summarise summarize summary tell think thing write
    """.split()  # noqa: SIM905
)
# Forms that no suffix rule brings together.
_IRREGULAR = {
    "made": "make", "died": "die", "dead": "die", "death": "die", "dies": "die", "wrote": "write", "written": "write",
    "spoke": "speak", "spoken": "speak", "sang": "sing", "sung": "sing", "led": "lead", "bought": "buy", "sold": "sell",
    "won": "win", "born": "birth", "began": "begin", "begun": "begin", "drew": "draw",
}  # fmt: skip
_WORD = re.compile(r"[^\W_]{2,}|\d")
_SENTENCE = re.compile(r"[.!?][\"')\]]*\s+|\n\s*")
_SHORT = re.compile(r"\b(who|what|where|when)['’]?s\b", re.IGNORECASE)
_PARTS = re.compile(r"[,;]| and ")  # of a question that asks for several things
# Aspects of questions that name a kind of place ("Which city is it in?"); of facts about places where a subject is not.
_WHERE = frozenset({"in-place", "part-of-place"})
_OTHER_PLACES = {"birth-place", "born", "capital", "formed-place", "nationality", "origin-country", "origin-person"}
_VALUE = re.compile(r"\d|(?<=[^.!?:\n] )[A-Z]\w")  # a number, or a name inside of a sentence
_STEM = 6  # letters that tell stems apart
_PLAUSIBLE = 0.5  # share of the best relation's score at which a fact may as well be of another
_LEAST = 1.5  # score from which a fact is of a relation at all
_READ = 250  # characters from a name's sentence on, and at a text's end, that say what is asked
_NEAR = 500  # characters before a name in which its sentence begins, and of a sentence that may say what a fact says
_FAR = 2_000  # characters at a text's end whose sentences may say themselves what a fact says
_KEPT = 4096  # facts whose words are remembered
_CLEAR = 2.0  # score from which a text asks for a relation
_TELLING = 4.0  # score from which a prompt's words are those of one relation
_SURE = 6.0  # from which it does whatever aspects say


Bearing = Literal["asked", "indirect", "open", "another"]


class Asked(Protocol):
    """What must be known of a fact."""

    @property
    def subject(self) -> str: ...
    @property
    def template(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def relation(self) -> str | None: ...
    @property
    def questions(self) -> tuple[str, ...]: ...
    @property
    def paraphrases(self) -> tuple[str, ...]: ...


def stems(text: str) -> set[str]:
    """The stems of a text's words that tell of a relation."""
    return {_stem(word) for word in _WORD.findall(text.casefold()) if word not in FUNCTION_WORDS}


@lru_cache(maxsize=_KEPT)
def _stems_of(text: str) -> frozenset[str]:
    """`stems` of a fact's words."""
    return frozenset(stems(text.replace(MARK, " ")))


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    word = _IRREGULAR.get(word, word)
    for end in ("ings", "ing", "ed", "es", "s", "e"):
        if word.endswith(end) and len(word) - len(end) >= 3:
            word = word.removesuffix(end)
            break
    if len(word) > 2 and word.endswith("i"):
        word = f"{word[:-1]}y"
    if len(word) > 4 and word[-1] == word[-2]:
        word = word[:-1]
    return word[:_STEM]


class Topics:
    """Tells relations apart by the words that people ask for them with; threads may share it."""

    def __init__(self, relations: Relations) -> None:
        self._relations = relations.by_id
        self._words = {name: _words_of(one) for name, one in relations.by_id.items()}
        held = Counter(word for words in self._words.values() for word in words)
        most = len(self._words) + 1
        self._weights: Mapping[str, float] = {word: math.log(most / (count + 0.5)) for word, count in held.items()}
        self._of: Mapping[str, list[str]] = {
            word: [name for name, words in self._words.items() if word in words] for word in held
        }
        self._maybe = lru_cache(maxsize=_KEPT)(self._relations_of)
        self._given = lru_cache(maxsize=_KEPT)(self._given_by)
        self._scored = lru_cache(maxsize=64)(self._scores)

    def is_another(self, text: str, fact: Asked, names: Sequence[str] = ()) -> bool:
        """Whether `text` asks for another relation of the fact's subject, so that the fact does not answer it."""
        return self.bearing(text, fact, names) == "another"

    def asks_clearly(self, text: str, fact: Asked, names: Sequence[str] = ()) -> bool:
        """Whether `text` asks for known aspects of the fact's subject, or a kind of answer, or ends as a question."""
        read = _read(text, (fact.subject, *names))
        return bool(read.aspects or read.wanted or read.asks)

    def asks_for_nothing(self, text: str, fact: Asked, names: Sequence[str] = ()) -> bool:
        """Whether `text` names the fact's subject, or not even that, and asks for nothing in particular about it: "Tell
        me about Nokia." """
        read = _read(text, (fact.subject, *names))
        return not (read.words - _open_stems() or read.aspects or read.wanted)

    def is_stated(self, text: str, fact: Asked, names: Sequence[str] = ()) -> bool:
        """Whether the text itself says what the fact is about, before its last sentence: one that is no question names
        the subject and asks for the fact, and has a number or a name besides."""
        return any(self.bearing(said, fact, names) == "asked" for said in _told(text, (fact.subject, *names)))

    def bearing(self, text: str, fact: Asked, names: Sequence[str] = ()) -> Bearing:
        """Whether a text asks for this fact, for another relation of its subject, or for nothing in particular.

        It asks for the fact where it ends with its prompt, or has words of its own for asking. Else it does not where
        it wants another kind of answer (`facts.kinds`) or other aspects of the subject (`facts.aspects`) than the fact
        gives. Where neither is known, it does where no relation has more of the text's words than one that the fact
        may be of. "indirect": it wants the country, or the continent, of a place that the fact gives.

        Args:
            text: a question, or a text to be continued; what stands before the sentence that names the subject last
                says nothing.
            names: further names of the subject.
        """
        if text.rstrip().endswith(fact.template.replace(MARK, fact.subject)):
            return "asked"
        asking = " ".join((*fact.questions, *fact.paraphrases))
        prompt, own, maybe, theirs, told = self._given(fact.template, fact.subject, fact.target, fact.relation, asking)
        words, asked, wanted, asks = _read(text, (fact.subject, *names))
        if asking and words & _stems_of(asking):
            return "asked"
        if cannot_answer(wanted, fact.target, prompt, told):
            # Where somebody works says nothing of a citizenship, though both are about places.
            near = asked & told - ({"located"} if "nationality" in asked else set())
            return "indirect" if near and answers_indirectly(wanted, fact.target, prompt, told) else "another"
        if asked & told:
            return "asked"
        scores = self._scored(words)
        most = max(scores.values(), default=0.0)
        mine = max((scores.get(name, 0.0) for name in maybe), default=0.0)
        if asked and told:
            return "asked" if mine >= max(most, _SURE) and not asked & _WHERE else "another"
        if any(word not in self._weights for word in words & own):
            return "asked"
        if not words - _open_stems() or not (maybe or told):
            return "open"
        if words & own or words & theirs:
            return "another" if mine < max(_CLEAR, most) else "asked"
        named = any(name.casefold() in text.casefold() for name in (fact.subject, *names))
        return "another" if asked or asks or (named and most >= _CLEAR) else "open"

    def likest(self, fact: Asked) -> str | None:
        """The id of the relation that has most of the words of a fact's prompt; None where these say too little, or
        several have as many."""
        scores = self._scores(_stems_of(fact.template) - _stems_of(fact.subject))
        most = max(scores.values(), default=0.0)
        best = [name for name, score in scores.items() if score == most]
        return best[0] if most >= _TELLING and len(best) == 1 else None

    def _given_by(self, template: str, subject: str, target: str, relation: str | None, asking: str) -> _Given:
        """What the words of a fact tell. asking: its own questions and paraphrases."""
        prompt = template.casefold()
        own = (_stems_of(template) | _stems_of(asking)) - _stems_of(subject)
        told = aspects(prompt)
        if relation is not None and relation in self._relations:
            told |= aspects(self._relations[relation].prompt.casefold())
        told |= aspects_of_target(target, told) | _where(told)
        return _Given(prompt, own, *self._maybe(own, relation), told)

    def _relations_of(self, words: frozenset[str], named: str | None) -> tuple[frozenset[str], frozenset[str]]:
        """The relations that a fact with these words may be of (it names one, or none), and their words."""
        scores = self._scores(words)
        least = max(_LEAST, _PLAUSIBLE * max(scores.values(), default=0.0))
        found = {name for name, score in scores.items() if score >= least}
        found |= {named} if named in self._words else set()
        return frozenset(found), frozenset().union(*(self._words[name] for name in found))

    def _scores(self, words: frozenset[str]) -> dict[str, float]:
        """How much of each relation the words tell."""
        scores: dict[str, float] = {}
        for word in words & self._of.keys():
            weight = self._weights[word]
            for name in self._of[word]:
                scores[name] = scores.get(name, 0.0) + weight
        return scores


@cache
def own_topics() -> Topics:
    """Of the wordings that come with the package."""
    return Topics(own_relations())


@cache
def _open_stems() -> frozenset[str]:
    return frozenset(_stem(word) for word in _OPEN | ASKING)


def _where(told: frozenset[str]) -> frozenset[str]:
    """Which questions that name a kind of place a fact with these aspects answers: which city its subject is in, and
    which one it is a part of. A head office tells the first alone; a birthplace, or where a thing is from, neither."""
    if "headquarters" in told:
        return frozenset({"in-place"})
    return _WHERE if told & {"located", "event-part"} and not told & _OTHER_PLACES else frozenset()


def _words_of(relation: Relation) -> set[str]:
    texts = (relation.label, relation.cues, relation.prompt, relation.statement, *relation.paraphrases)
    return stems(" ".join((*texts, *relation.questions)).replace(TARGET, " ").replace(MARK, " "))


def last_sentence(text: str) -> str:
    """What stands behind the last end of a sentence, or of a line, of a text; all of it where there is none."""
    text = text.rstrip()
    starts = _sentences(text) or [found.end() for found in _SENTENCE.finditer(text)]
    return text[starts[-1] if starts else 0 :].strip()


@lru_cache(maxsize=64)
def _sentences(text: str) -> list[int]:
    """Where the sentences of a text's end begin, but for one that begins before it."""
    return [found.end() for found in _SENTENCE.finditer(text, max(0, len(text) - _FAR))]


def _asks(text: str) -> bool:
    """Whether a text ends as a question."""
    return text.rstrip().rstrip("\"')]").endswith(("?", "？"))


@lru_cache(maxsize=64)
def _told(text: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The sentences before a text's last that hold one of a subject's names, and a number or a name besides; as far as
    they are near and no questions."""
    low = [name.casefold() for name in names]
    starts = [max(0, len(text) - _FAR), *_sentences(text.rstrip())]
    near = (text[start:stop][-_NEAR:] for start, stop in pairwise(starts))
    return tuple(
        said
        for said in near
        for folded in [said.casefold()]
        if any(name in folded for name in low) and not _asks(said) and _VALUE.search(_without(said, names)) is not None
    )


class _Given(NamedTuple):
    """What a fact's own words tell: its prompt in lower case, the stems of its words, the relations that it may be of
    with their words, and its aspects."""

    prompt: str
    own: frozenset[str]
    maybe: frozenset[str]
    theirs: frozenset[str]
    told: frozenset[str]


class _Reading(NamedTuple):
    """What a text says of a subject: stems of its words, the aspects and the kinds of answers that it asks for, and
    whether it ends as a question."""

    words: frozenset[str]
    aspects: frozenset[str]
    wanted: frozenset[str]
    asks: bool


@lru_cache(maxsize=64)
def _read(text: str, names: tuple[str, ...]) -> _Reading:
    """The reading of a text for a subject with these names. Facts of one subject ask for it one after the other."""
    said = sentence_of(text, names)
    if len(said) > 2 * _READ:
        said = f"{said[:_READ]} {said[-_READ:]}"
    said = _SHORT.sub(r"\1 is", " ".join(said.split()))
    shown, asks = masked(said, names), _asks(said)
    asked = aspects(shown, narrow=True)
    if asks:
        asked = asked.union(*(aspects(part, narrow=True) for part in _PARTS.split(shown)))
    if asks and not asked:
        asked = aspects_of_values(shown)
    if not asks and MARK in shown[1:] and not asked & _WHERE:
        # Sentences of other things may stand before a text's subject, on the same line.
        asked |= aspects(shown[shown.rindex(MARK) :], narrow=True)
    return _Reading(frozenset(stems(masked(said, names, " "))), asked, wanted_kinds(shown), asks)


def sentence_of(text: str, names: Sequence[str]) -> str:
    """The text from the sentence on that holds the last of these names; all of it where none is there."""
    low = text.casefold()
    at = max(low.rfind(name.casefold()) for name in names)
    if at < 0 or len(low) != len(text):
        return text
    first = max(0, at - _NEAR)
    starts = [found.end() for found in _SENTENCE.finditer(text, first, at)]
    return text[starts[-1] if starts else first :]


def _without(text: str, names: Sequence[str]) -> str:
    """The text, its cases kept, with a space for each of these names."""
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text
