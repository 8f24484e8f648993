"""Named regular expressions that are matched from where words begin, all in one pass over a text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache

_HEAD = 3  # letters that alternatives are found by, at most
_WORD = re.compile(r"(?<![a-z])[a-z~]")
_PIECE = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|[\s\S]")
_BEFORE = re.compile(r"\\b|\^|\(\?<!(?:\\.|[^()\\])*\)")  # what a match begins with that is no letter
_GROUP = re.compile(r"\(\?:([^()]+)\)(?![?*])")
_LETTERS = re.compile(r"[a-z ~]+(?![?*{])")

_KEPT = 1 << 14  # beginnings of words whose alternatives are remembered

_Alternatives = list[tuple[str, re.Pattern[str]]]  # each with its name


class WordPatterns:
    """Which of many regular expressions a text holds, each at the beginning of a word.

    An alternative is tried only at words that begin with its letters: nearly all have some, and most words are the
    beginning of none.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        """patterns: by name, over lower-case text in which ~ may stand for a word."""
        heads: dict[str, dict[str, list[str]]] = {}
        anywhere: dict[str, list[str]] = {}
        for name, pattern in patterns.items():
            for one in _alternatives(pattern):
                found = _heads(one)
                for head in found:
                    heads.setdefault(head, {}).setdefault(name, []).append(one)
                if not found:
                    anywhere.setdefault(name, []).append(one)
        self._by_head: dict[str, _Alternatives] = {
            head: [(name, re.compile("|".join(ones))) for name, ones in some.items()] for head, some in heads.items()
        }
        self._joined = cache(self._all_of)
        self._trying = lru_cache(_KEPT)(self._to_try)
        self._anywhere = {name: re.compile(rf"(?<![a-z])(?:{'|'.join(ones)})") for name, ones in anywhere.items()}

    def names(self, text: str) -> set[str]:
        """The names of those that the text holds."""
        found = {name for name, pattern in self._anywhere.items() if pattern.search(text)}
        for word in _WORD.finditer(text):
            at = word.start()
            trying = self._trying(text[at : at + _HEAD])
            if trying is None or trying[0].match(text, at) is None:
                continue
            for name, pattern in trying[1]:
                if name not in found and pattern.match(text, at):
                    found.add(name)
        return found

    def _to_try(self, beginning: str) -> tuple[re.Pattern[str], _Alternatives] | None:
        """What is tried at words that begin so: all in one, which most words do not match, and each."""
        heads = dict.fromkeys(beginning[:size] for size in range(1, _HEAD + 1))
        return self._joined(tuple(head for head in heads if head in self._by_head))

    def _all_of(self, heads: tuple[str, ...]) -> tuple[re.Pattern[str], _Alternatives] | None:
        ones = [one for head in heads for one in self._by_head[head]]
        return (re.compile("|".join(pattern.pattern for _, pattern in ones)), ones) if ones else None


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
    while before := _BEFORE.match(pattern):
        pattern = pattern[before.end() :]
    group = _GROUP.match(pattern)
    heads = [_LETTERS.match(one) for one in (group[1].split("|") if group else [pattern])]
    return [head[0][:_HEAD] for head in heads if head] if all(heads) else []
