"""What stands between a prompt and its target: one space, or nothing where the script has none there."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

SEPARATORS = ("", " ")
# Beginnings of the names that Unicode gives to the characters of scripts that are written without spaces between words.
# Korean is not among them. A full-width letter stands in such a text.
_SPACELESS = (
    "CJK ", "IDEOGRAPHIC ", "KANGXI ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "HENTAIGANA ", "BOPOMOFO ",
    "FULLWIDTH ", "YI ", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ", "TAI ", "NEW TAI LUE ", "JAVANESE ",
    "BALINESE ",
)  # fmt: skip
_OPENING, _QUOTES = "Ps", ("Pi", "Pf")


def separator(prompt: str, target: str) -> str:
    """ "" or " ": how a text that ends with `prompt` goes on with `target`; white space between them does not count.

    Nothing stands between them where the last letter of the prompt and the first of the target are of scripts without
    spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan, ...), digits and punctuation left aside; behind an
    opening bracket or quotation mark; and behind full-width punctuation, which brings its own space.
    """
    head, tail = prompt.rstrip(), target.lstrip()
    if not head or not tail:
        return " "
    if _opens(head) or _is_wide_mark(head[-1]):
        return ""
    before = _deciding(reversed(head))
    return "" if before and _deciding(iter(tail)) is not False else " "


def is_apart(char: str, neighbour: str) -> bool:
    """Whether the word of `char` does not go on with the character beside it ("" at a text's end). Where the script
    has no spaces that cannot be told, and holds for all."""
    return not neighbour.isalnum() or is_spaceless(neighbour) or is_spaceless(char)


def is_spaceless(char: str) -> bool:
    """Whether a character is of a script that is written without spaces between words."""
    return bool(char) and not char.isascii() and unicodedata.name(char, "").startswith(_SPACELESS)


@lru_cache(maxsize=4096)
def _kind(char: str) -> bool | None:
    """True for a character of a script without spaces, False for another letter, None for what goes with both."""
    if is_spaceless(char):
        return True
    return False if unicodedata.category(char)[0] == "L" else None


def _deciding(chars: Iterable[str]) -> bool | None:
    """The kind of the first letter; None where there is none."""
    return next((kind for kind in map(_kind, chars) if kind is not None), None)


def _opens(head: str) -> bool:
    last, before = head[-1], head[-2:-1]
    category = unicodedata.category(last)
    if category == _OPENING:
        return True
    free = not before or before.isspace() or unicodedata.category(before) == _OPENING
    return (last in "\"'" or category in _QUOTES) and free


def _is_wide_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "P" and unicodedata.east_asian_width(char) in ("W", "F")
