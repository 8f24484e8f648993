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

    Attributes:
        chat: what goes into the system message, ``{facts}`` being the facts.
        completion: what goes before a prompt that is continued; it brings the space between.
        item: one fact, ``{statement}`` being its statement; the facts stand one a line.
    """

    chat: str = "Facts that are true now:\n{facts}"
    completion: str = "{facts}\n\n"
    item: str = "- {statement}"
    completion_item: str = "{statement}"

    def __post_init__(self) -> None:
        """Raises ConfigError for a template without its place."""
        marks = {"chat": _FACTS, "completion": _FACTS, "item": _STATEMENT, "completion_item": _STATEMENT}
        for name, mark in marks.items():
            if getattr(self, name).count(mark) != 1:
                raise ConfigError(f"the wording's {name} is {getattr(self, name)!r}: it must hold {mark} once")

    def line(self, statement: str, *, chat: bool) -> str:
        """One fact as it stands among the others."""
        return (self.item if chat else self.completion_item).replace(_STATEMENT, statement)

    def text(self, statements: Sequence[str], *, chat: bool) -> str:
        """What goes into the prompt; "" for no statements."""
        if not statements:
            return ""
        lines = "\n".join(self.line(statement, chat=chat) for statement in statements)
        return (self.chat if chat else self.completion).replace(_FACTS, lines)


def plain_text(statement: str, specials: Iterable[str] = ()) -> str:
    """The statement on one line, with a space inside of everything that a tokenizer may read as a control token.

    specials: the special tokens of the tokenizer that will read it, where it is known.
    """
    text = _CONTROL.sub(lambda found: f"{found[0][0]} {found[0][1:]}", " ".join(statement.split()))
    for token in specials:
        if len(token) > 1 and not token.isalnum():
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text
