"""Kinds of answers: whether a question that wants a country, a person or a date can be answered by a fact's target."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from neuraldb_faiss.facts.word_patterns import WordPatterns

# What else an answer of a kind is: a country is a place, and may own or found things.
_ALSO = {"country": {"place", "agent"}, "continent": {"place"}, "player-position": {"occupation"}}

# What follows from a city, though it is neither.
_AROUND = {"country", "continent"}

# Questions that yes or no answers, about a subject.
_YES_OR_NO = re.compile(r"(?:is|are|was|were|am|does|do|did|has|have|can|could|isn't|wasn't) ~")
_IN = re.compile(r"(?:is|are|was|were|isn't|wasn't) ~ (?:still |really |located |situated )?(?:in|at)\b")
_LONGEST_VALUE = 3  # words

# Kinds that say too little of what a fact is about.
_COMMON = {"place", "country", "continent", "agent", "time", "number", "contact"}


@dataclass(frozen=True, slots=True)
class _Kinds:
    """asks, forms: by kind. words: the kinds of a target. aspects: an aspect's kind."""

    asks: WordPatterns
    forms: Mapping[str, re.Pattern[str]]
    words: Mapping[str, frozenset[str]]
    aspects: Mapping[str, Sequence[str]]
    closed: frozenset[str]


@lru_cache(maxsize=1 << 14)
def wanted_kinds(text: str) -> frozenset[str]:
    """The kinds of answers that a text wants; none where it does not say. The subject stands as ``{}``; lower case."""
    text = text.replace("{}", "~")
    return frozenset(_kinds().asks.names(text))


@lru_cache(maxsize=1 << 14)
def target_kinds(target: str) -> frozenset[str]:
    """The kinds of which a target is known to be; none where its words tell nothing."""
    text = " ".join(target.casefold().split()).strip(" .")
    text = text.removeprefix("the ").removeprefix("an ").removeprefix("a ")
    kinds = _kinds()
    return kinds.words.get(text, frozenset()) | {kind for kind, form in kinds.forms.items() if form.fullmatch(text)}


@lru_cache(maxsize=1 << 14)
def aspects_of_target(target: str, told: frozenset[str]) -> frozenset[str]:
    """The aspects that a target tells where its fact's words, which tell `told`, say nothing of its kind: a fact that
    says "{}, a native French" is about languages."""
    kinds = _kinds()
    named = {kind for name in told for kind in kinds.aspects.get(name, (name,))}
    lost = target_kinds(target) - named - _COMMON
    return lost | {name for name, given in kinds.aspects.items() if lost and not lost.isdisjoint(given)}


@lru_cache(maxsize=1 << 14)
def cannot_answer(wanted: frozenset[str], target: str, prompt: str, told: frozenset[str]) -> bool:
    """Whether no answer of a wanted kind is given by the target of a fact.

    A target whose kind is not known is judged by the fact's prompt (with ``{}`` for the subject, lower case) and the
    aspects that it tells; where they say nothing either, it may answer.
    """
    if not wanted:
        return False
    kinds = _kinds()
    by_words = {kind for name in told for kind in kinds.aspects.get(name, (name,))} | wanted_kinds(prompt)
    if "anything" in by_words:
        return False
    found = target_kinds(target)
    if found:
        return wanted.isdisjoint(_wider(found)) and wanted.isdisjoint(by_words)
    if not by_words:
        return False
    return wanted.isdisjoint(_wider(by_words)) if wanted & kinds.closed else wanted.isdisjoint(by_words)


def answers_indirectly(wanted: frozenset[str], target: str, prompt: str, told: frozenset[str]) -> bool:
    """Whether a question wants the country or the continent of a place that the target of a fact is. See
    `cannot_answer`, for facts of which this is asked."""
    if not wanted & _AROUND or not wanted <= _AROUND | {"place"}:
        return False
    kinds = _kinds()
    found = target_kinds(target) or {kind for name in told for kind in kinds.aspects.get(name, (name,))}
    return not found.isdisjoint({"place", "country"})


@lru_cache(maxsize=1 << 14)
def aspects_of_values(text: str) -> frozenset[str]:
    """The aspects whose values a question names that is answered by yes or no: "is {} a baker or a doctor?" is about an
    occupation, "is {} in dutch?" about a language. The subject stands as ``{}``; lower case."""
    text = text.replace("{}", "~")
    if not _YES_OR_NO.match(text):
        return frozenset()
    kinds, words = _kinds(), re.findall(r"[^\s,.?!\"]+", text)
    spans = (" ".join(words[at : at + n]) for n in range(1, _LONGEST_VALUE + 1) for at in range(len(words)))
    named = frozenset().union(*(kinds.words.get(span, ()) for span in spans))
    if not named:
        return frozenset({"located"}) if _IN.match(text) else named
    return named | {name for name, given in kinds.aspects.items() if not named.isdisjoint(given)}


def _wider(kinds: frozenset[str] | set[str]) -> set[str]:
    return set(kinds).union(*(_ALSO.get(kind, ()) for kind in kinds))


@cache
def _kinds() -> _Kinds:
    listed = tomllib.loads(files(__package__).joinpath("kinds.toml").read_text(encoding="utf-8"))
    words: dict[str, frozenset[str]] = {}
    for kind, names in listed["words"].items():
        for name in names:
            words[name] = words.get(name, frozenset()) | {kind}
    return _Kinds(
        asks=WordPatterns(listed["asks"]),
        forms={kind: re.compile(one) for kind, one in listed["forms"].items()},
        words=words,
        aspects={name: kind.split() for name, kind in listed["aspects"].items()},
        closed=frozenset(listed["closed"]),
    )
