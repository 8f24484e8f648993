"""Whether a text names one of many subjects, as plain words; it asks no index and no model."""

from __future__ import annotations

import re
from collections.abc import Iterable

_WORD = re.compile(r"\w+")


class SubjectNames:
    """Names of subjects and aliases, compared word by word without regard to case and signs."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, set[tuple[str, ...]]] = {}
        for name in names:
            if words := _words(name):
                self._by_first.setdefault(words[0], set()).add(words)

    def named_in(self, text: str) -> bool:
        """Whether the words of some name stand in the text, one behind the other."""
        words = _words(text)
        return any(
            words[start : start + len(name)] == name
            for start, first in enumerate(words)
            for name in self._by_first.get(first, ())
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))
