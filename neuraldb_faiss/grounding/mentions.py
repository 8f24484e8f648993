"""Mentions of subjects in plain text, without a tokenizer.

A name is found from where a word begins to where one ends; "Londons" and "London's" name London. Letters are compared
in Unicode's compatibility form, white space in one. Whether case counts depends on the name:

- As the fact writes it, or with its first letter a capital, a name counts everywhere. One that is a function word
  ("It") does not where a sentence begins.
- A name of several words with a rare one among them ("Helio X2", "Pemberton Museum") counts in any case.
- Other names of several words ("Apple Watch"), and rare names of one ("Nokia"), count in any case where the text gives
  its names no capitals. All in capitals, a rare name counts everywhere.
- A common word ("Turkey"), a name of fewer than four letters, and one that `neuraldb calibrate` found among ordinary
  words, counts only as it is written.

Misspelled names are not found, nor are names of more than `LONGEST` code points.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

import numpy as np

from neuraldb_faiss.grounding.common_words import FUNCTION_WORDS, common_words
from neuraldb_faiss.guard.entry_facts import EntryFacts, FactSource
from neuraldb_faiss.guard.folding import LOWER, NO_CASE, PARAGRAPH, SEPARATOR, SPACE, fold_name, fold_text, in_word
from neuraldb_faiss.guard.name_files import subjects_of
from neuraldb_faiss.guard.name_index import Subjects, as_written

LONGEST = 200
_STOPS = 2_000  # word ends looked at in one go, from the end of a text
_TOGETHER = 32  # stretches whose entries are read at once
_S = ord("s")
_SENTENCE_ENDS = frozenset(map(ord, ".!?:\"'("))
_PLURAL = 4  # code points of a name that an s may follow
_RARE = 4  # code points of a word that may count in another case
_WORDS = re.compile(r"[^\W_]+")
_INSIDE = re.compile(r"(?<=[\w,;)\]’'] )(\w)(\w)")  # the first two letters of a word inside of a sentence


class Mention(NamedTuple):
    """text[start:stop], folded, is a name of these entries."""

    start: int
    stop: int
    entries: tuple[int, ...]


class Mentions:
    """Finds the names of one generation's entries in texts; threads may share it."""

    def __init__(self, facts: EntryFacts, before: Mentions | None = None) -> None:
        """facts: of the generation. before: one of an earlier generation, which lends what it knows where the lineage
        is the same."""
        self._facts, source = facts, facts.source
        self.source: FactSource = source
        same = before is not None and getattr(before.source, "lineage", None) == getattr(source, "lineage", None)
        lent = before._known if before is not None and same else None
        self._known: tuple[Subjects, int] = subjects_of(source, None, lent, facts.names)
        self._measured = _folded(source.floors)

    def in_text(self, text: str) -> Iterator[Mention]:
        """The mentions in a text, from its end to its beginning; of those with one end the longest first."""
        subjects, _ = self._known
        read = _Read(text)
        for last in range(len(read.stops), 0, -_STOPS):
            stops = read.stops[max(0, last - _STOPS) : last]
            found = sorted(
                subjects.stretches(read.codes, read.begins, stops, LONGEST), key=lambda one: (-one[1], one[0])
            )
            for at, (start, stop, entries) in enumerate(found):
                if at % _TOGETHER == 0:
                    self._facts.read(entry for _, _, some in found[at : at + _TOGETHER] for entry in some)
                spelled = read.codes[start:stop].tobytes()
                named = tuple(
                    entry
                    for entry in entries
                    for spellings in [subjects.spellings(entry).get(spelled, ())]
                    if any(self._counts(read, start, stop, own) for own, _ in spellings)
                )
                if named:
                    yield Mention(start, stop, named)

    def _counts(self, read: _Read, start: int, stop: int, own: bytes) -> bool:
        """Whether this stretch, whose letters are a name's, is written as a mention of it. own: the name's cases."""
        if read.goes_on(stop) and stop - start < _PLURAL:
            return False
        cases = read.cases_of(start, stop)
        name = "".join(map(chr, read.codes[start:stop].tolist()))
        if as_written(cases, own):
            return name not in FUNCTION_WORDS or not read.begins_sentence(start)
        if read.codes[start:stop].tobytes() in self._measured:
            return False
        words = _WORDS.findall(name)
        telling = [word for word in words if word not in FUNCTION_WORDS]
        rare = any(
            (len(word) >= _RARE and word not in common_words()) or (len(words) > 1 and not word.isalpha())
            for word in telling
        )
        if rare and (len(telling) > 1 or LOWER not in cases):
            return True
        return (rare or len(telling) > 1) and read.is_careless


class _Read:
    """A text as names are looked for in it.

    begins, stops: int64, where a name may begin and stop.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self.codes, self._cases = fold_text(text)
        codes, self._words = self.codes, in_word(self.codes)
        solid = (codes != SPACE) & (codes != SEPARATOR)
        begins, stops = solid.copy(), solid.copy()
        inside = self._words[:-1] & self._words[1:]
        begins[1:] &= ~inside
        plural = codes[1:] == _S
        plural[:-1] &= ~self._words[2:]
        stops[:-1] &= ~inside | plural
        self.begins, self.stops = np.flatnonzero(begins), np.flatnonzero(stops) + 1

    def cases_of(self, start: int, stop: int) -> bytes:
        cases = self._cases[start:stop]
        return np.where(cases == PARAGRAPH, np.uint8(NO_CASE), cases).tobytes()

    def goes_on(self, stop: int) -> bool:
        """Whether the word goes on there, by an s."""
        return bool(stop < len(self._words) and self._words[stop - 1] and self._words[stop])

    def begins_sentence(self, start: int) -> bool:
        if start == 0 or self._cases[start - 1] == PARAGRAPH:
            return True
        before = int(self.codes[start - 1])
        if before == SPACE:
            return start == 1 or int(self.codes[start - 2]) in _SENTENCE_ENDS
        return before in _SENTENCE_ENDS

    @cached_property
    def is_careless(self) -> bool:
        """Whether no word inside of a sentence begins with a capital and goes on small: case says nothing of names."""
        return not any(word[1].isupper() and word[2].islower() for word in _INSIDE.finditer(self._text))


def _folded(floors: Mapping[str, float]) -> frozenset[bytes]:
    return frozenset(fold_name(name)[0] for name in floors)
