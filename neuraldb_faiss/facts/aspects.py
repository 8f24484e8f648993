"""Aspects of a subject that a text asks for: its price, its place, the people who lead it.

`aspects.toml` describes them by the words that people use, the same for all facts; wordings of relations
(`relations.toml`) describe one relation each.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files

_SUBJECT = "~"
_LONGEST = 200  # characters that are looked at, from the end
_PRONOUN = re.compile(r"\b(?:(it|they|he|him|she|you)|(its|their|his|her|your))\b")


@lru_cache(maxsize=1 << 14)
def aspects(text: str) -> frozenset[str]:
    """The aspects that a text asks for. The subject stands as ``{}`` in it, or as a pronoun; lower case."""
    text = text[-_LONGEST:].replace("{}", _SUBJECT)
    if _SUBJECT not in text:
        text = _PRONOUN.sub(lambda found: _SUBJECT if found[1] else f"{_SUBJECT}'s", text)
    return frozenset(name for name, pattern in _patterns().items() if pattern.search(text))


def masked(text: str, names: Sequence[str]) -> str:
    """The text in lower case with ``{}`` for each of a subject's names."""
    text = text.casefold()
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", "{}", text)
    return text


@cache
def _patterns() -> Mapping[str, re.Pattern[str]]:
    listed = tomllib.loads(files(__package__).joinpath("aspects.toml").read_text(encoding="utf-8"))
    return {name: re.compile(rf"(?<![a-z])(?:{words})") for name, words in listed.items()}
