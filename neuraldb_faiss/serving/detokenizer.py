"""Tokens as text while they come: whole characters only, and an end at the client's stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_BROKEN = "\ufffd"  # what a tokenizer writes for bytes that are no whole character yet


class Words:
    """The text of tokens, piece by piece; the pieces joined are the text of all of them.

    Only the last few tokens are decoded anew at each step.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        """context: tokens before the first one, which decide whether its text begins with a space."""
        self._tokenizer = tokenizer
        self._ids = list(context)
        self._first = 0
        self._said = len(self._ids)

    def push(self, token: int) -> str:
        """What this token adds; nothing while a character is incomplete."""
        self._ids.append(token)
        new = self._new()
        if not new or new.endswith(_BROKEN):
            return ""
        self._first, self._said = self._said, len(self._ids)
        return new

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        new = self._new()
        self._first = self._said = len(self._ids)
        return new

    def _new(self) -> str:
        return self._decode(self._ids[self._first :])[len(self._decode(self._ids[self._first : self._said])) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Stops:
    """Cuts a text that comes in pieces before the first of the stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """What may be said now: not the beginning of what may become a stop string. Sets `met` at a whole one."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.met = True
            return self._held[: min(places)]
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        said, self._held = self._held[:cut], self._held[cut:]
        return said

    def rest(self) -> str:
        return "" if self.met else self._held

    def _begun(self, stop: str) -> int:
        """How many characters at the end of what is held are the stop string's first ones."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
