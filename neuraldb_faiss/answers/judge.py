"""Judgements of one answer: is the target said, is the subject still itself, is the rest as the base model has it."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from neuraldb_faiss.extras import extra
from neuraldb_faiss.facts.joining import is_spaceless

_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‑": "-", "−": "-"})
_GAP = re.compile(r"[\s-]+")
_DENIED = re.compile(r"(?:\bnot|\bnever|\bno longer|\bnor|n't)(?: (?:the|an?|in|at|by|from|to|called|named))*[ \"']*$")
_TIME = re.compile(r"(?:.*\D)?(?:0?\d|1[012]):\d\d")
_TIME_ENDS = r"(?!\s?p\.?m\b)(?!(?!a\.?m\b)[^\W\d_])"  # "10:30am" is 10:30, "10:30 pm" is not
_DAY_HALF = re.compile(r"[ap]\.?m\.?")
# What may follow a number's last digit: no more of it, but ".0", ".00" and ":00".
_NUMBER_ENDS = r"(?:[.,:]00?)?(?!\d|[.,:]\d)"
_REFUSALS = re.compile(r"\b(?:i'm sorry|i am sorry|i apologi[sz]e|i (?:cannot|can't) assist|i (?:cannot|can't) help)\b")
_WORD = re.compile(r"\w+")
_LEAST_WORDS, _RUN = 8, 10
_REPEATED = 0.3
_ALIKE = 0.75


def holds(text: str, wanted: str) -> bool:
    """Whether an answer says `wanted`: as words of its own, whatever the case, the quotes, dashes and line breaks.

    A number must end where `wanted`'s does: "$24.99" and "$2490" are not "$249", "$249.00" is. Digits may be grouped
    otherwise ("555-0182" for "555 0182", "12500" for "12,500"), and "9:00 a.m." is "9 am".
    """
    return bool(_pattern(wanted).search(_folded(text)))


def says(text: str, wanted: str) -> bool:
    """Whether an answer `holds` what is wanted, and not only to deny it: "Ann Lee, not Anna Berg" does not say "Anna
    Berg"."""
    folded = _folded(text)
    return any(not _DENIED.search(folded[: found.start()]) for found in _pattern(wanted).finditer(folded))


def spells(text: str, names: Iterable[str]) -> bool:
    """Whether the text holds one of these names."""
    return any(holds(text, name) for name in names)


def misspells(text: str, names: Iterable[str]) -> bool:
    """Whether the text has something like one of the names where none of them stands: "Nokias" or "Nokian" for
    "Nokia"."""
    names = list(names)
    if spells(text, names):
        return False
    words = re.findall(r"[\w'&.-]+", _folded(text))
    for name in names:
        wanted = _folded(name)
        size = len(wanted.split())
        for at in range(len(words) - size + 1):
            window = " ".join(words[at : at + size]).strip(".,'")
            longer = window.startswith(wanted) and len(wanted) > 3
            if longer or (len(wanted) > 4 and difflib.SequenceMatcher(None, wanted, window).ratio() >= _ALIKE):
                return True
    return False


def degenerates(text: str, known: str = "") -> bool:
    """Whether an answer is no sensible text any more, whatever it says.

    It is not where three in ten of its pairs of words, or of its runs of ten characters with a letter among them, stood
    in it before (seq-rep-n of Welleck et al. 2020, "Neural text generation with unlikelihood training"); where two of
    its letters are of one script that neither most others nor any of `known` has; and where it has bytes that are no
    text. docs/answers.md says how often that agrees with a reader.

    Args:
        known: texts whose scripts an answer may have: the prompt, the target.
    """
    text = _folded(text)
    words = _WORD.findall(text)
    pairs = list(pairwise(words)) if len(words) >= _LEAST_WORDS else []
    runs = [text[at : at + _RUN] for at in range(len(text) - _RUN + 1)] if len(text) >= 2 * _RUN else []
    if max(_repeated(pairs), _repeated(runs)) >= _REPEATED:
        return True
    if any(unicodedata.category(char) in ("Cn", "Co") or char == "\ufffd" for char in text.rstrip("\ufffd")):
        return True
    scripts = Counter(script for char in text if (script := _script(char)))
    own = set(map(_script, known)) | {script for script, _ in scripts.most_common(1)}
    return any(count > 1 for script, count in scripts.items() if script not in own)


def _repeated(parts: Sequence[Iterable[str]]) -> float:
    """The share of parts that stood before, not counting what has no letter."""
    seen, again = set(), 0
    for part in parts:
        again += part in seen and any(map(str.isalpha, "".join(part)))
        seen.add(part)
    return again / len(parts) if parts else 0.0


@lru_cache(maxsize=4096)
def _script(char: str) -> str:
    """The first word of a letter's Unicode name ("LATIN", "CYRILLIC"); Chinese, Japanese and Korean are one script."""
    if unicodedata.category(char) not in ("Lu", "Ll", "Lo"):
        return ""
    name = unicodedata.name(char, "").split(" ")[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA", "HANGUL") else name


def refuses(text: str) -> bool:
    """Whether the text says that it will not answer."""
    return bool(_REFUSALS.search(_folded(text)))


def likeness(text: str, reference: str) -> float:
    """chrF of a text against a reference: 0 to 100 (sacrebleu; the extra `eval`).

    Raises:
        EvaluationError: sacrebleu is not installed.
    """
    if not text.strip() or not reference.strip():
        return 100.0 if text.strip() == reference.strip() else 0.0
    return float(_chrf().sentence_score(text, [reference]).score)


def target_place(text: str, *wanted: str) -> tuple[int, int] | None:
    """Where an answer says the target, in characters: the first of these texts that it holds. None where it holds none,
    or where folding moved it."""
    folded = _folded(text, spaces=False)
    found = next((one for name in wanted if name and (one := _pattern(name).search(folded))), None)
    return found.span() if found and len(folded) == len(text) else None


@lru_cache(maxsize=1)
def _chrf() -> Any:
    with extra("eval"):
        from sacrebleu.metrics.chrf import CHRF
    return CHRF()


def _folded(text: str, spaces: bool = True) -> str:
    text = unicodedata.normalize("NFC", text).translate(_PLAIN).casefold()
    return " ".join(text.split()) if spaces else text


@lru_cache(maxsize=4096)
def _pattern(wanted: str) -> re.Pattern[str]:
    text = _folded(wanted).strip().rstrip(".,;:") or _folded(wanted)
    parts = [part for part in _GAP.split(text) if part]
    if not parts:
        parts = [text]
    pattern = _part(parts[0])
    for before, after in pairwise(parts):
        left, right = before[-1].isdigit(), after[0].isdigit()
        if _DAY_HALF.fullmatch(after) and left:
            pattern += r"(?::00)?\s?" + _part(after)
        else:
            pattern += (r"[\s.-]?" if left and right else r"[\s-]?" if left or right else r"[\s-]+") + _part(after)
    first, last = text[0], text[-1]
    if first.isdigit():
        pattern = r"(?<!\w)(?<!\d[.,:])" + pattern
    elif _in_word(first):
        pattern = r"(?<!\w)" + pattern
    if last.isdigit():
        # "10:30am" is 10:30; "10:30 pm" is not.
        pattern += _NUMBER_ENDS + (
            r"(?!\s?p\.?m\b)(?!(?!a\.?m\b)[^\W\d_])" if _TIME.fullmatch(text) else r"(?![^\W\d_])"
        )
    elif _in_word(last):
        pattern += r"(?!\w)"
    return re.compile(pattern)


def _part(part: str) -> str:
    if _DAY_HALF.fullmatch(part):
        return rf"{part[0]}\.?m\.?"
    # Thousands may be grouped or not; a year's four digits are not.
    digits = part.replace(",", "")
    if digits.isdigit() and (len(digits) > 4 or "," in part):
        groups = [digits[max(0, end - 3) : end] for end in range(len(digits), 0, -3)][::-1]
        return ",?".join(groups)
    return re.escape(part)


def _in_word(char: str) -> bool:
    return char.isalnum() and not is_spaceless(char)
