"""Aspects of a subject that a text asks for: its price, its place, the people who lead it.

`aspects.toml` describes them by the words that people use, the same for all facts; wordings of relations
(`relations.toml`) describe one relation each.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from neuraldb_faiss.facts.word_patterns import WordPatterns

_SUBJECT = "~"
_LONGEST = 200  # characters that are looked at, from the end
_PRONOUN = re.compile(r"\b(?:(it|they|he|him|she|you)|(its|their|his|her|your))\b")


def aspects(text: str, narrow: bool = False) -> frozenset[str]:
    """The aspects that a text asks for. The subject stands as ``{}`` in it, or as a pronoun; lower case.

    narrow: only the aspects that tell most closely what is asked, where there are any (`narrow` of `aspects.toml`):
        where somebody was born, not where anything is.
    """
    return _aspects_in(text[-_LONGEST:], narrow)


@lru_cache(maxsize=1 << 14)
def _aspects_in(text: str, narrow: bool) -> frozenset[str]:
    text = text.replace("{}", _SUBJECT)
    if _SUBJECT not in text:
        text = _PRONOUN.sub(lambda found: _SUBJECT if found[1] else f"{_SUBJECT}'s", text)
    known = _aspects()
    found = known.patterns.names(text)
    return frozenset(found & known.narrow or found if narrow else found)


def masked(text: str, names: Sequence[str], put: str = "{}") -> str:
    """The text in lower case with ``{}``, or what is put, for each of a subject's names."""
    text = text.casefold()
    for name in sorted(names, key=len, reverse=True):
        text = _replaced(text, name.casefold(), put)
    return text


def _replaced(text: str, name: str, put: str) -> str:
    """Without a regular expression: compiling one takes longer, and names are many."""
    parts: list[str] = []
    done, at = 0, text.find(name)
    while name and at >= 0:
        stop = at + len(name)
        if not _in_word(text[at - 1 : at]) and not _in_word(text[stop : stop + 1]):
            parts += text[done:at], put
            done = stop
        at = text.find(name, max(stop, at + 1))
    return "".join((*parts, text[done:]))


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_"


@dataclass(frozen=True, slots=True)
class _Aspects:
    """patterns: by aspect. narrow: aspects that tell more closely than others what is asked."""

    patterns: WordPatterns
    narrow: frozenset[str]


@cache
def _aspects() -> _Aspects:
    listed = tomllib.loads(files(__package__).joinpath("aspects.toml").read_text(encoding="utf-8"))
    narrow = frozenset(listed.pop("narrow"))
    return _Aspects(WordPatterns(listed), narrow)
