"""Index of entry names that finds which of them end at which token of a text.

Every name is kept as a 64-bit hash in one sorted array. A text gets prefix hashes, from which the hash of any stretch
of it follows at once; the stretches that begin where a word may begin and end where a token ends are looked up, and
what is found is compared letter by letter with the entry's names. So the cost of a token hardly depends on the
number of names, and a wrong hit is not possible, only a wasted comparison.

A name counts where it is written as the entry has it, or with its first letter a capital ("The moon" for "the moon").
In a paragraph without any capitals, or of nothing but capitals, case says nothing, and any case counts; elsewhere it
does: "song" is not "Song". What a token says is known only up to its end, so "Oz" ends in "Ozawa" too; short names do
so often, and all names do in text of one case. For such matches there is a floor: a cosine that is asked for whatever
the gate is (measured in docs/gate.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from types import MappingProxyType

import numpy as np

from neuraldb_faiss.guard.ends import Ends, Stretch, by_token
from neuraldb_faiss.guard.folding import (
    LOWER,
    NO_CASE,
    PARAGRAPH,
    SEPARATOR,
    SPACE,
    UPPER,
    fold_bytes,
    fold_name,
    in_word,
)

_CHUNK = 20_000  # names hashed at once
_CACHE = 1 << 16
HASH_VERSION = 1  # of what follows and of the folding: indices on disk with another one are made anew
_S = ord("s")
_BASE = 0xD6E8FEB86659FD93  # odd, so that its powers have inverses modulo 2**64


@dataclass(frozen=True, slots=True)
class Folded:
    """Texts, folded and joined. codes: uint32 [n]. cases: uint8 [n]. tokens: int64 [n], the token that completes each
    code point, -1 for what was seen before (left context, separators). ahead: whether the next token may tell that a
    word goes on."""

    codes: np.ndarray
    cases: np.ndarray
    tokens: np.ndarray
    ahead: bool = False


Speller = Callable[[Sequence[str]], list[str]]  # how names are spelled in the texts that are read

CASE_REACH = 200  # code points before a name, of its paragraph, that tell whether a text has capitals
_FLOORS_BY_LENGTH = {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.85, 5: 0.7}  # names of one word and so many code points
_FLOORS_OF_ONE_CASE = {True: 0.9, False: 0.65}  # of one word, of several


def floor_of(name: str, measured: Mapping[str, float] = MappingProxyType({})) -> float:
    """The cosine asked for where a text ends with this name, written as it is; `measured`: see `Subjects.of`."""
    words = " ".join(name.split())
    return max(0.0 if " " in words else _FLOORS_BY_LENGTH.get(len(words), 0.0), measured.get(words, 0.0))


@cache
def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """_BASE**i and _BASE**-i modulo 2**64, i < size."""
    inverse = pow(_BASE, -1, 1 << 64)
    return tuple(
        np.multiply.accumulate(np.r_[np.uint64(1), np.full(size - 1, base, np.uint64)]) for base in (_BASE, inverse)
    )  # type: ignore[return-value]


def _scramble(values: np.ndarray) -> np.ndarray:
    """Every bit of uint64 depends on every other (splitmix64's finish)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class _Prefixes:
    """Hashes of stretches codes[start:stop] of one text."""

    def __init__(self, codes: np.ndarray) -> None:
        powers, self._inverse = _powers(1 << max(10, len(codes).bit_length()))
        terms = _scramble(codes.astype(np.uint64) + np.uint64(1)) * powers[: len(codes)]
        self._sums = np.r_[np.uint64(0), np.cumsum(terms)]

    def of(self, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        return _scramble((self._sums[stops] - self._sums[starts]) * self._inverse[starts])


def hash_names(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [n] hashes, and int64 [n] lengths in code points."""
    hashes, lengths = np.empty(len(names), np.uint64), np.empty(len(names), np.int64)
    # One letter outside ASCII sends the whole chunk the slow way, so such names go by themselves.
    plain = np.fromiter(map(str.isascii, names), bool, len(names))
    for which in (np.flatnonzero(plain), np.flatnonzero(~plain)):
        for first in range(0, len(which), _CHUNK):
            rows = which[first : first + _CHUNK]
            part = [" ".join(names[row].split()).replace("\0", "\ufffd") for row in rows.tolist()]
            codes, _, _ = fold_bytes("\0".join(part).encode("utf-8", "replace"))
            cuts = np.flatnonzero(codes == SEPARATOR)
            starts, stops = np.r_[0, cuts + 1], np.r_[cuts, len(codes)]
            hashes[rows], lengths[rows] = _Prefixes(codes).of(starts, stops), stops - starts
    return hashes, lengths


class Subjects:
    """Names of entries. `names_of(entry)` gives the names that a hit is compared with; `floors`, by name, what was
    measured for single ones (`neuraldb calibrate`)."""

    def __init__(
        self, hashes: np.ndarray, entries: np.ndarray, longest: int, names_of: Callable[[int], Iterable[str]],
        floors: Mapping[str, float] = MappingProxyType({}), maybe: np.ndarray | None = None,
        spell: Speller | None = None,
    ) -> None:  # fmt: skip
        """hashes: uint64 [n] ascending, entries: int64 [n], longest: code points of the longest name. maybe: that of an
        earlier state of these names, in which theirs are marked already; it is kept where its size still suits. spell:
        where texts spell names otherwise than `names_of` does."""
        self.hashes, self.entries, self.longest = hashes, entries, longest
        self._spell = spell
        # Not by a method: with a cycle, old snapshots would stay until the collector comes by.
        self._spelled = lru_cache(_CACHE)(partial(_spellings, names_of, floors, spell))
        # One bit a hash, in bytes: tells nearly all stretches that are no name without a search.
        bits = max(16, (16 * len(hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        if maybe is None or len(maybe) != 1 << bits:
            maybe = np.zeros(1 << bits, bool)
            maybe[(hashes >> self._shift).astype(np.int64)] = True
        self._maybe = maybe

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[int, str]], names_of: Callable[[int], Iterable[str]],
        floors: Mapping[str, float] = MappingProxyType({}), spell: Speller | None = None,
    ) -> Subjects:  # fmt: skip
        """From (entry, name) pairs."""
        none = cls(np.empty(0, np.uint64), np.empty(0, np.int64), 0, names_of, spell=spell)
        return none.extended(pairs, names_of, floors)

    def extended(
        self, pairs: Iterable[tuple[int, str]], names_of: Callable[[int], Iterable[str]],
        floors: Mapping[str, float] = MappingProxyType({}),
    ) -> Subjects:  # fmt: skip
        """With more (entry, name) pairs, and the names and floors of a later generation."""
        numbers, names = [], []
        for entry, name in pairs:
            numbers.append(entry)
            names.append(name)
        spell = self._spell
        if not names and len(self):
            return Subjects(self.hashes, self.entries, self.longest, names_of, floors, self._maybe, spell)
        hashes, lengths = hash_names(names if spell is None else spell(names))
        entries, longest = np.array(numbers, np.int64), max(self.longest, int(lengths.max(initial=0)))
        order = np.lexsort((entries, hashes))
        order = order[lengths[order] > 0]
        hashes, entries = hashes[order], entries[order]
        fresh = np.r_[True, (np.diff(hashes) != 0) | (np.diff(entries) != 0)][: len(hashes)]
        if len(self):
            left, right = np.searchsorted(self.hashes, hashes, "left"), np.searchsorted(self.hashes, hashes, "right")
            for one in np.flatnonzero(fresh & (right > left)):
                fresh[one] = entries[one] not in self.entries[left[one] : right[one]]
        hashes, entries = hashes[fresh], entries[fresh]
        if not len(self):
            return Subjects(hashes, entries, longest, names_of, floors, spell=spell)
        if not len(hashes):
            return Subjects(self.hashes, self.entries, longest, names_of, floors, self._maybe, spell)
        at = np.searchsorted(self.hashes, hashes)
        self._maybe[(hashes >> self._shift).astype(np.int64)] = True  # one mark too many costs this one nothing
        return Subjects(
            np.insert(self.hashes, at, hashes), np.insert(self.entries, at, entries), longest, names_of, floors,
            self._maybe, spell,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def reach(self) -> int:
        """Code points of left context that can matter."""
        return self.longest + CASE_REACH + 1

    def ends(self, text: Folded, *, any_case: bool = False) -> Ends:
        """The names that end inside a token of `text`, or at its end.

        A name must begin where a word does. Inside a token it must also end where a word does; at a token's end what
        follows is not known yet, and must not matter, unless `text.ahead`: then a word that goes on there by more than
        an s is another word. Each pair comes once, with its lowest floor. With `any_case` those that only their case
        keeps from counting come too.

        Longer names are told as far as the text is known: what is generated one token at a time ends in "Xbox" before
        it ends in "Xbox 360".
        """
        codes, tokens = text.codes, text.tokens
        if not len(self) or not len(codes):
            return by_token([], tokens)
        words = in_word(codes)
        begins = np.flatnonzero(~(words & np.r_[False, words[:-1]]) & (codes != SEPARATOR))
        within = words[:-1] & words[1:]
        # A genitive or a plural is the name still: "Londons", "the Beatles". What was seen before is another row's.
        goes_on = within & ~((codes[1:] == _S) & ~np.r_[words[2:], False]) & (tokens[1:] >= 0)
        joined = within & (tokens[:-1] == tokens[1:])
        if text.ahead:
            joined |= goes_on
        stops = np.flatnonzero((tokens >= 0) & ~np.r_[joined, False] & (codes != SEPARATOR)) + 1
        found: list[Stretch] = []
        for a, b, entries in self.stretches(codes, begins, stops):
            cased = text.cases[a:b]
            spelled, cases = codes[a:b].tobytes(), np.where(cased == PARAGRAPH, np.uint8(NO_CASE), cased).tobytes()
            for entry in entries:
                for own, floor in self.spellings(entry).get(spelled, ()):
                    if not as_written(cases, own):
                        if _one_case(codes, text.cases, a, b):
                            floor = max(floor, _FLOORS_OF_ONE_CASE[SPACE not in codes[a:b]])
                        elif any_case:
                            floor = np.inf
                        else:
                            continue
                    found.append(Stretch(a, b, entry, floor, b == len(codes) or not goes_on[b - 1]))
        return by_token(found, tokens)

    def stretches(
        self, codes: np.ndarray, begins: np.ndarray, stops: np.ndarray, longest: int | None = None
    ) -> Iterator[tuple[int, int, list[int]]]:
        """(start, stop, entries) of every stretch of a text that hashes as a name of these entries does, for comparison
        with their `spellings`.

        Args:
            codes: uint32 [n], folded. begins, stops: int64, ascending, where a name may start and stop.
            longest: code points of the longest stretch; by default that of the longest name.
        """
        if not len(self) or not len(begins) or not len(stops):
            return
        most = self.longest if longest is None else min(longest, self.longest)
        low = np.searchsorted(begins, stops - most)
        counts = np.searchsorted(begins, stops) - low
        stop = np.repeat(stops, counts)
        start = begins[np.arange(len(stop)) - np.repeat(np.cumsum(counts) - counts - low, counts)]
        hashes = _Prefixes(codes).of(start, stop)
        maybe = np.flatnonzero(self._maybe[(hashes >> self._shift).astype(np.int64)])
        left = np.searchsorted(self.hashes, hashes[maybe], "left")
        known = self.hashes[np.minimum(left, len(self) - 1)] == hashes[maybe]
        for which in np.flatnonzero(known):
            at = maybe[which]
            right = int(np.searchsorted(self.hashes, hashes[at], "right"))
            yield int(start[at]), int(stop[at]), self.entries[left[which] : right].tolist()

    def spellings(self, entry: int) -> dict[bytes, list[tuple[bytes, float]]]:
        """Folded name -> its spellings, each as (cases, floor), of an entry's names."""
        return self._spelled(entry)


def _spellings(
    names_of: Callable[[int], Iterable[str]], floors: Mapping[str, float], spell: Speller | None, entry: int
) -> dict[bytes, list[tuple[bytes, float]]]:
    """Folded name -> its spellings: cases, floor."""
    found: dict[bytes, list[tuple[bytes, float]]] = {}
    names = list(names_of(entry))
    spelled = names if spell is None else spell(names)
    for name, text in zip(names, spelled, strict=True):
        codes, cases = fold_name(text)
        floor = floor_of(name, floors)
        if text != name and UPPER in fold_name(name)[1] and UPPER not in cases:
            floor = max(floor, _FLOORS_OF_ONE_CASE[len(name.split()) == 1])  # case says nothing in such texts
        found.setdefault(codes, []).append((cases, floor))
    return found


def as_written(cases: bytes, own: bytes) -> bool:
    """Whether a text's cases are a name's own, but for a capital where the name begins small."""
    return cases == own or (cases[1:] == own[1:] and (cases[0], own[0]) == (UPPER, LOWER))


def _one_case(codes: np.ndarray, cases: np.ndarray, start: int, stop: int) -> bool:
    """Whether codes[start:stop] and what stands before it in the same paragraph has no capitals, or nothing else."""
    first = max(0, start - CASE_REACH)
    breaks = np.flatnonzero((codes[first:start] == SEPARATOR) | (cases[first:start] == PARAGRAPH))
    window = cases[first + breaks[-1] + 1 if len(breaks) else first : stop]
    return not (UPPER in window and LOWER in window)
