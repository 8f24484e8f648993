"""Aspects of a subject that a text asks for: its price, its place, the people who lead it.

`aspects.toml` describes them by the words that people use, the same for all facts; wordings of relations
(`relations.toml`) describe one relation each.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

_SUBJECT = "~"
_LONGEST = 200  # characters that are looked at, from the end
_HEAD = 3  # letters that patterns are found by
_WORD = re.compile(r"(?<![a-z])[a-z~]")
_PIECE = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|[\s\S]")
_GROUP = re.compile(r"\(\?:([^()]+)\)(?![?*])")
_LETTERS = re.compile(r"[a-z ~]{3}(?![?*{])")
_PRONOUN = re.compile(r"\b(?:(it|they|he|him|she|you)|(its|their|his|her|your))\b")


@lru_cache(maxsize=1 << 14)
def aspects(text: str, narrow: bool = False) -> frozenset[str]:
    """The aspects that a text asks for. The subject stands as ``{}`` in it, or as a pronoun; lower case.

    narrow: only the aspects that tell most closely what is asked, where there are any (`narrow` of `aspects.toml`):
        where somebody was born, not where anything is.
    """
    text = text[-_LONGEST:].replace("{}", _SUBJECT)
    if _SUBJECT not in text:
        text = _PRONOUN.sub(lambda found: _SUBJECT if found[1] else f"{_SUBJECT}'s", text)
    patterns = _patterns()
    found = {name for name, pattern in patterns.anywhere.items() if pattern.search(text)}
    for word in _WORD.finditer(text):
        for name, pattern in patterns.starting.get(text[word.start() : word.start() + _HEAD], ()):
            if name not in found and pattern.match(text, word.start()):
                found.add(name)
    return frozenset(found & patterns.narrow or found if narrow else found)


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
class _Patterns:
    """The aspects' patterns.

    starting: by the letters that they begin with, for these are tried only where a word does. anywhere: the others.
    narrow: aspects that tell more closely than others what is asked.
    """

    starting: Mapping[str, Sequence[tuple[str, re.Pattern[str]]]]
    anywhere: Mapping[str, re.Pattern[str]]
    narrow: frozenset[str]


@cache
def _patterns() -> _Patterns:
    listed = tomllib.loads(files(__package__).joinpath("aspects.toml").read_text(encoding="utf-8"))
    narrow = frozenset(listed.pop("narrow"))
    starting: dict[str, dict[str, list[str]]] = {}
    anywhere: dict[str, list[str]] = {}
    for name, words in listed.items():
        for one in _alternatives(words):
            heads = _heads(one)
            for head in heads:
                starting.setdefault(head, {}).setdefault(name, []).append(one)
            if not heads:
                anywhere.setdefault(name, []).append(one)
    return _Patterns(
        {head: [(name, re.compile("|".join(ones))) for name, ones in some.items()] for head, some in starting.items()},
        {name: re.compile(rf"(?<![a-z])(?:{'|'.join(ones)})") for name, ones in anywhere.items()},
        narrow,
    )


def _alternatives(pattern: str) -> list[str]:
    """A regular expression's parts between its outermost bars."""
    parts, depth = [""], 0
    for piece in _PIECE.findall(pattern):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _heads(pattern: str) -> list[str]:
    """The letters that matches of a regular expression may begin with; none where they cannot be told."""
    pattern = pattern.removeprefix(r"\b")
    group = _GROUP.match(pattern)
    heads = [_LETTERS.match(one) for one in (group[1].split("|") if group else [pattern])]
    return [head[0] for head in heads if head] if all(heads) else []
