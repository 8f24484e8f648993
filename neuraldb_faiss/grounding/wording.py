"""Words in which facts go into a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from neuraldb_faiss.errors import ConfigError

_FACTS, _STATEMENT = "{facts}", "{statement}"
# Control tokens of well-known chat templates, for readers whose tokenizer is not at hand.
_CONTROL = re.compile(
    r"<[|｜][^|｜<>\n]{1,60}[|｜]>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_(?:turn|image)>"
    r"|<(?:bos|eos|pad|unk|mask)>|\[(?:CLS|SEP|PAD|MASK|UNK)\]"
)


@dataclass(frozen=True, slots=True)
class Wording:
    """Templates of the words that ground a prompt.

    A small model overlooks a sentence that stands far from the question or in other words than it. So facts that a
    prompt asks for are said more than once: in a chat behind the question too, before a text that is continued again
    and in the words of its last sentence.

    Attributes:
        chat: what goes into the system message, ``{facts}`` being the facts.
        turn: what goes behind the user's last message for facts that it asks for; "" for nothing.
        completion: what goes before a prompt that is continued; it brings the space between.
        item, completion_item: one fact, ``{statement}`` being its statement; the facts stand one a line.
        copies: how often a fact that a continued prompt asks for stands before it, as it is stated and then as the
            prompt's last sentence would state it; with 0 it is stated once.
    """

    chat: str = "Facts:\n{facts}"
    turn: str = "\n\nAnswer in a whole sentence with this fact: {facts}"
    completion: str = "Facts:\n{facts}\n\n"
    item: str = "- {statement}"
    completion_item: str = "- {statement}"
    copies: int = 2

    def __post_init__(self) -> None:
        """Raises ConfigError for a template without its place."""
        marks = {"chat": _FACTS, "completion": _FACTS, "item": _STATEMENT, "completion_item": _STATEMENT}
        marks |= {"turn": _FACTS} if self.turn else {}
        for name, mark in marks.items():
            if getattr(self, name).count(mark) != 1:
                raise ConfigError(f"the wording's {name} is {getattr(self, name)!r}: it must hold {mark} once")

    def lines(self, statement: str, *, chat: bool, echo: str = "") -> list[str]:
        """One fact as it stands among the others. echo: what the prompt's last sentence says with the fact's target,
        where the prompt asks for it."""
        if chat:
            return [self.item.replace(_STATEMENT, statement)]
        said = ([statement] * self.copies + [echo] * self.copies if echo else []) or [statement]
        return [self.completion_item.replace(_STATEMENT, one) for one in said]

    def text(self, statements: Sequence[str], *, chat: bool) -> str:
        """What goes into the prompt for facts that are said once each; "" for no statements."""
        return self.front([line for one in statements for line in self.lines(one, chat=chat)], chat=chat)

    def front(self, lines: Sequence[str], *, chat: bool) -> str:
        """What goes into the system message, or before a text; "" for no lines."""
        return (self.chat if chat else self.completion).replace(_FACTS, "\n".join(lines)) if lines else ""

    def behind(self, statements: Sequence[str]) -> str:
        """What goes behind the user's last message for the facts that it asks for; "" for no statements."""
        return self.turn.replace(_FACTS, " ".join(statements)) if statements else ""


def plain_text(statement: str, specials: Iterable[str] = ()) -> str:
    """The statement on one line, with a space inside of everything that a tokenizer may read as a control token.

    specials: the special tokens of the tokenizer that will read it, where it is known.
    """
    text = _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", " ".join(statement.split()))
    for token in specials:
        if len(token) > 1 and not token.isalnum():
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
