"""JSON from files that anybody may have written: parsed within bounds and checked for its type, or refused.

Python's own parser takes NaN, numbers that become infinite, and half of a surrogate pair; deep nesting and long numbers
raise errors of several kinds. Here there is one error, and what is returned can be written as JSON and stored again.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_TEXT = 32 << 20  # characters of one JSON text
MAX_DEPTH = 64  # arrays and objects inside one another
MAX_DIGITS = 4000  # of an integer; Python itself writes and reads 4,300
INTEGERS = 1 << 53  # ids and counts stay below: every JSON reader has them exactly, and SQLite can add to them


class BadJSON(ValueError):
    """The text is not JSON, breaks a bound, or holds another type; the message is one line."""


def parse(text: object) -> Any:
    """The value of a JSON text, a str or UTF-8 bytes.

    Raises:
        BadJSON: anything else, or a value that could not be written as JSON again.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        if not isinstance(text, str):
            raise BadJSON(f"{type(text).__name__} where a JSON text belongs")
        if len(text) > MAX_TEXT:
            raise BadJSON(f"a JSON text of {len(text):,} characters; at most {MAX_TEXT:,} are read")
        value = _DECODER.decode(text)
        if "\\u" in text or text.count("[") + text.count("{") > MAX_DEPTH:
            _check(value)
        return value
    except RecursionError:
        raise BadJSON(f"nested too deep (more than {MAX_DEPTH})") from None
    except MemoryError:
        raise BadJSON("a JSON text too large for the memory") from None
    except ValueError as error:
        raise BadJSON(" ".join(str(error).split())[:200]) from None


def parse_object(text: object) -> dict[str, Any]:
    """As `parse`; raises BadJSON also for what is no JSON object."""
    value = parse(text)
    if not isinstance(value, dict):
        raise BadJSON("it is no JSON object")
    return value


def parse_strings(text: object) -> tuple[str, ...]:
    """As `parse`; raises BadJSON also for what is no list of strings."""
    value = parse(text)
    if not is_strings(value):
        raise BadJSON("it is no list of strings")
    return tuple(value)


def is_count(value: object, below: int = INTEGERS) -> bool:
    """Whether it is an int (no bool), at least 0 and below a bound."""
    return type(value) is int and 0 <= value < below


def is_number(value: object) -> bool:
    """Whether it is a finite int or float (no bool) that fits a float."""
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < INTEGERS)


def is_strings(value: object) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def shown(value: object) -> str:
    """A value in a message: short, and on one line."""
    if isinstance(value, (str, bytes)):
        return ascii(value[:40])
    return repr(value)[:40] if isinstance(value, (bool, int, float)) else f"of type {type(value).__name__}"


def is_text(value: str) -> bool:
    """Whether UTF-8 can hold it: half of a surrogate pair it cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inside: list[Any] = []
        for one in level:
            if isinstance(one, str) and not is_text(one):
                raise BadJSON("a text with half of a surrogate pair")
            if isinstance(one, dict):
                inside += one.keys()
                inside += one.values()
            elif isinstance(one, list):
                inside += one
        if not inside:
            return
        level = inside
    raise BadJSON(f"nested too deep (more than {MAX_DEPTH})")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise BadJSON(f"an integer of {len(digits):,} digits; at most {MAX_DIGITS:,} are read")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise BadJSON("a number too large for a float")
    return value


def _constant(name: str) -> float:
    raise BadJSON(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_constant)
