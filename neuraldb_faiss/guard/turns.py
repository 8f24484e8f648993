"""Messages and answers of a chat, told apart by the tokens that its template puts between them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

# A role stands between two marks by itself, or in the first line of what is said.
_ROLE = re.compile(r"\s*(\w*)\s*")
_HEAD = re.compile(r"\s*(\w+)[ \t]*\n")
_known: WeakKeyDictionary[Any, tuple[str, Turns]] = WeakKeyDictionary()


class Turn(NamedTuple):
    """ids[start:stop] of a chat, between two marks; or what stands before the first of them, as "text"."""

    start: int
    stop: int
    kind: Literal["text", "message", "answer"]


@dataclass(frozen=True, slots=True)
class Turns:
    """A chat template's marks.

    Attributes:
        marks: the special tokens that stand between turns, and in no text that is no chat; none where the template has
            none, or does not say where an answer begins.
        opening: the tokens that the template puts before an answer.
    """

    marks: frozenset[int] = frozenset()
    opening: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Any) -> Turns:
        """Those of the tokenizer's template, found by trying it."""
        template = str(getattr(tokenizer, "chat_template", None) or "")
        known = _known.get(tokenizer)
        if known is None or known[0] != template:
            known = _known[tokenizer] = template, _tried(tokenizer) if template else cls()
        return known[1]

    def split(self, ids: Sequence[int]) -> list[Turn]:
        """The turns of a text, in order. Some are empty, or hold no more than a role."""
        cuts = [at for at, token in enumerate(ids) if token in self.marks] if self.marks else []
        cuts.append(len(ids))
        found = [Turn(0, cuts[0], "text")]
        for at, stop in pairwise(cuts):
            answer = self._opened(ids, at)
            found.append(Turn(at + 1, stop, "message") if answer is None else Turn(answer, stop, "answer"))
        return found

    def messages(
        self, ids: Sequence[int], turns: Sequence[Turn], written: Callable[[Sequence[int]], str]
    ) -> list[dict[str, str]]:
        """What is said in these turns of `ids`, as messages with role and content. written: the text of tokens."""
        found: list[dict[str, str]] = []
        role = ""
        for turn in turns:
            text = written(ids[turn.start : turn.stop])
            if turn.kind == "answer":
                found.append({"role": "assistant", "content": text.strip()})
            elif alone := _ROLE.fullmatch(text):
                role = alone[1] or role
                continue
            elif turn.kind == "message":
                head = None if role else _HEAD.match(text)
                role = role or (head[1] if head else "user")
                found.append({"role": role, "content": text[head.end() if head else 0 :].strip()})
            role = ""
        return found

    def _opened(self, ids: Sequence[int], mark: int) -> int | None:
        """Where the answer begins that the opening whose last mark stands at `mark` is for."""
        first = mark - max(at for at, token in enumerate(self.opening) if token in self.marks)
        end = first + len(self.opening)
        return end if first >= 0 and tuple(ids[first:end]) == self.opening else None


def _tried(tokenizer: Any) -> Turns:
    message = [{"role": "user", "content": "a"}]

    def written(opened: bool) -> list[int]:
        text = tokenizer.apply_chat_template(message, add_generation_prompt=opened, tokenize=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        asked, opened = written(False), written(True)
    except Exception:  # templates raise what they like
        return Turns()
    opening = opened[len(asked) :]
    special = {number for number, added in tokenizer.added_tokens_decoder.items() if added.special}
    marks = special.intersection(opened).difference(tokenizer("a")["input_ids"])
    if opened[: len(asked)] != asked or marks.isdisjoint(opening):
        return Turns()
    return Turns(frozenset(marks), tuple(opening))
