"""Texts as code points in which spellings of one name are equal: case, Unicode form and white space folded."""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache

import numpy as np

SPACE, SEPARATOR = 0x20, 0  # the separator stands between texts: in no name, and part of no word
NO_CASE, LOWER, UPPER = 0, 1, 2
PARAGRAPH = 3  # in the place of a case, of white space with two line feeds or more
_LINE_FEED = 0x0A
WORDLESS = 0x2E80  # from here on scripts are written without spaces between words (or are symbols)


@lru_cache(maxsize=1 << 16)
def _fold_char(char: str) -> tuple[int, ...]:
    """Compatibility decomposition and case folding; each character by itself, so that texts fold piece by piece."""
    if char.isspace():
        return (SPACE,)
    decomposed = unicodedata.normalize("NFKD", char).casefold()
    return tuple(map(ord, unicodedata.normalize("NFKD", decomposed)))


def _case(char: str) -> int:
    return UPPER if char != char.lower() else LOWER if char != char.upper() else NO_CASE


@cache
def _ascii_tables() -> tuple[np.ndarray, np.ndarray]:
    chars = list(map(chr, range(128)))
    return np.array([_fold_char(char)[0] for char in chars], np.uint32), np.array(list(map(_case, chars)), np.uint8)


@cache
def _word_table() -> np.ndarray:
    """bool [WORDLESS]: letters, digits and the marks upon them."""
    chars = map(chr, range(WORDLESS))
    table = np.array([char.isalnum() or unicodedata.category(char)[0] == "M" for char in chars])
    for first, last in ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF)):  # Thai, Lao, Burmese, Khmer
        table[first : last + 1] = False
    return table


def in_word(codes: np.ndarray) -> np.ndarray:
    """bool [n]: code points that continue a word, so that a name cannot begin or end between two of them."""
    return np.where(codes < WORDLESS, _word_table()[np.minimum(codes, WORDLESS - 1)], False)


def fold_bytes(data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """UTF-8 (broken or cut anywhere) folded, runs of white space being one space.

    Returns:
        codes uint32 [n]; for each the case its character had, or PARAGRAPH, uint8 [n]; and the offset in `data` of the
        last byte of its character, int64 [n].
    """
    if data.isascii():
        code_of, case_of = _ascii_tables()
        raw = np.frombuffer(data, np.uint8)
        codes, cases, ends, feeds = code_of[raw], case_of[raw], np.arange(len(data)), raw == _LINE_FEED
    else:
        found: list[int] = []
        cased: list[int] = []
        at: list[int] = []
        lines: list[bool] = []
        end = -1
        for char in data.decode("utf-8", "surrogateescape"):
            code = ord(char)
            # A byte that is no UTF-8 came back as one lone surrogate.
            end += 1 if code < 0x80 or 0xDC80 <= code <= 0xDCFF else 2 if code < 0x800 else 3 if code < 0x10000 else 4
            folded = _fold_char(char)
            found += folded
            cased += [_case(char)] * len(folded)
            at += [end] * len(folded)
            lines += [code == _LINE_FEED] * len(folded)
        codes, cases, ends = np.array(found, np.uint32), np.array(cased, np.uint8), np.array(at, np.int64)
        feeds = np.array(lines, bool)
    keep = _one_space(codes, cases, feeds)
    return codes[keep], cases[keep], ends[keep]


def fold_text(text: str) -> tuple[np.ndarray, np.ndarray]:
    """The codes and cases that `fold_bytes` gives for the text's UTF-8, in a fraction of the time."""
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    code_of, case_of = _ascii_tables()
    low = np.minimum(raw, 127)
    codes, cases, feeds = code_of[low], case_of[low], raw == _LINE_FEED
    others = np.flatnonzero(raw > 127)
    if len(others):
        kinds, which = np.unique(raw[others], return_inverse=True)
        folded = [_fold_char(chr(kind)) for kind in kinds.tolist()]
        sizes = np.array([len(one) for one in folded], np.int64)
        repeats = np.ones(len(raw), np.int64)
        repeats[others] = sizes[which]
        cases[others] = np.array([_case(chr(kind)) for kind in kinds.tolist()], np.uint8)[which]
        codes, cases, feeds = (np.repeat(part, repeats) for part in (codes, cases, feeds))
        at = np.repeat(np.cumsum(repeats)[others] - repeats[others], sizes[which])
        inside = np.arange(len(at)) - np.repeat(np.cumsum(sizes[which]) - sizes[which], sizes[which])
        first = np.cumsum(sizes) - sizes
        codes[at + inside] = np.array([code for one in folded for code in one], np.uint32)[
            np.repeat(first[which], sizes[which]) + inside
        ]
    keep = _one_space(codes, cases, feeds)
    return codes[keep], cases[keep]


def _one_space(codes: np.ndarray, cases: np.ndarray, feeds: np.ndarray) -> np.ndarray:
    """bool [n]: all but white space behind white space; the first of such a run with two line feeds or more gets the
    case PARAGRAPH, in place."""
    spaces = codes == SPACE
    keep = np.r_[True, ~(spaces[1:] & spaces[:-1])][: len(codes)]
    if feeds.sum() > 1:
        cases[np.flatnonzero(keep)[np.add.reduceat(feeds, np.flatnonzero(keep), dtype=np.int64) > 1]] = PARAGRAPH
    return keep


@lru_cache(maxsize=4096)  # facts of one subject ask for it one after the other
def fold_name(name: str) -> tuple[bytes, bytes]:
    """A name's folded code points, and their cases, for comparisons."""
    codes, cases, _ = fold_bytes(" ".join(name.split()).encode("utf-8", "replace"))
    return codes.tobytes(), cases.tobytes()
