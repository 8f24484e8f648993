"""Metadata of a fact: checked copies of JSON values, and the rules of the fields that are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.joining import SEPARATORS
from neuraldb_faiss.strict_json import MAX_DIGITS, is_text

HALF_PAIR = "holds half of a surrogate pair; mend it"
_MAX_DEPTH = 32
_MAX_METADATA = 4 << 20  # characters as JSON, roughly
_MAX_INTEGER = 10**MAX_DIGITS
_SHOWN_NAME = 40
_LISTS = {"aliases": ("names", "name"), "questions": ("questions", "question"), "paraphrases": ("prompts", "prompt")}


def broken_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The known fields of a fact's metadata that break a rule, each with the rule."""
    broken = {}
    for name, (plural, one) in _LISTS.items():
        if (rule := _broken_list(name, metadata.get(name), plural, one)) is not None:
            broken[name] = rule
    stated = metadata.get("statement")
    if stated is not None and not isinstance(stated, str):
        broken["statement"] = f"statement is {kind_of(stated)}; write one sentence, a string"
    elif stated is not None and not stated.strip():
        broken["statement"] = "statement is empty; write one sentence, or leave it out"
    said = metadata.get("separator")
    if said is not None and said not in SEPARATORS:
        broken["separator"] = (
            f'separator is {clip(str(said))}; it must be "" (the target follows the prompt at once) or " " (one space)'
        )
    return broken


def _broken_list(name: str, value: object, plural: str, one: str) -> str | None:
    """The rule that `value` breaks as a list of texts; None where it breaks none."""
    if isinstance(value, str):
        return f"{name} is one text, {clip(value)}; write a list of {plural}, each a string"
    if value is not None and not isinstance(value, list):
        return f"{name} is {kind_of(value)}; write a list of {plural}, each a string"
    odd = [text for text in value or () if not isinstance(text, str) or not text.strip()]
    if not odd:
        return None
    found = f"an empty {one}" if isinstance(odd[0], str) else f"a {one} {kind_of(odd[0])}"
    return f"{name} holds {found}; each must be a string of at least one character"


def clip(text: str, width: int = 80) -> str:
    """The text in quotes and on one line, cut to about `width` characters: for messages."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def kind_of(value: object) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


class MetadataCopy:
    """Copies a JSON value so that it shares nothing with it and equals what JSON gives back (tuples become lists)."""

    def __init__(self) -> None:
        self._left = _MAX_METADATA

    def of(self, value: object, *path: str) -> Any:
        """`path`: the names that lead to the value. Raises FactError for what JSON cannot hold."""
        if isinstance(value, str):
            if not is_text(value):
                raise FactError(f"{_name(path)} is {value[:80]!a}, which {HALF_PAIR}")
            self._spend(len(value))
            return value
        if isinstance(value, (bool, int)):
            self._spend(value.bit_length() // 3)
            if abs(value) >= _MAX_INTEGER:
                raise FactError(f"{_name(path)} has more than {MAX_DIGITS:,} digits; write it as a string")
            return value
        self._spend(1)
        if value is None:
            return None
        if isinstance(value, float):
            if not math.isfinite(value):
                raise FactError(f"{_name(path)} holds {value}; JSON numbers are finite")
            return value
        if not isinstance(value, (Mapping, list, tuple)):
            raise FactError(f"{_name(path)} holds a value {kind_of(value)}; JSON has none such")
        if len(path) > _MAX_DEPTH + 1:
            raise FactError(f"{_name(path)} is nested more than {_MAX_DEPTH} deep")
        if not isinstance(value, Mapping):
            return [self.of(item, *path, "") for item in value]
        for name in value:
            if not isinstance(name, str):
                raise FactError(f"{_name(path)} has a key {kind_of(name)}; keys must be strings")
            if not is_text(name):
                raise FactError(f"{_name(path)} has the key {name[:80]!a}, which {HALF_PAIR}")
            self._spend(len(name))
        return {name: self.of(item, *path, name) for name, item in value.items()}

    def _spend(self, characters: int) -> None:
        self._left -= characters + 3
        if self._left < 0:
            raise FactError(f"the metadata take more than {_MAX_METADATA:,} characters; leave some out")


def _name(path: tuple[str, ...]) -> str:
    """The names that are not empty (the items of a list have none), joined and short."""
    return clip(".".join(name[:_SHOWN_NAME] for name in path if name))[1:-1]
