"""Conversations: what their turns say, and where the words that ground them go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from neuraldb_faiss.errors import FactError

Message = dict[str, Any]
_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class SystemRole:
    """How a chat template treats system messages. takes: whether they are taken at all. default: what it writes as one
    where a conversation has none."""

    takes: bool = True
    default: str = ""


def said(messages: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """What the system messages say, and what each turn says, in order; parts that are no text are left out.

    Raises:
        FactError: a message is no mapping with a role.
    """
    system: list[str] = []
    turns: list[str] = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise FactError(f"message {number} of the conversation is no mapping with a role and a content")
        (system if message["role"] in _SYSTEM else turns).append(_text(message.get("content")))
    return system, turns


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    return "\n\n".join(texts)


def grounded(messages: Sequence[Mapping[str, Any]], text: str, role: SystemRole, turn: str = "") -> list[Message]:
    """The conversation with `text` in its system message and `turn` at the end of the user's last one, where that is
    the last of all; what was said stays to the letter.

    An existing system message is extended; else one is made, which begins with the template's default. Where the
    template takes none, `text` goes before the first turn of the user.
    """
    out = [dict(message) for message in messages]
    if not text:
        return out
    if turn and out[-1]["role"] == "user":
        out[-1]["content"] = _joined(out[-1].get("content"), turn, behind=True, gap="")
    at = next((number for number, one in enumerate(out) if one["role"] in _SYSTEM), None)
    if at is not None:
        out[at]["content"] = _joined(out[at].get("content"), text, behind=True)
        return out
    if role.takes:
        return [{"role": "system", "content": "\n\n".join(filter(None, (role.default, text)))}, *out]
    first = next((number for number, one in enumerate(out) if one["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": text}, *out]
    out[first]["content"] = _joined(out[first].get("content"), text, behind=False)
    return out


def _joined(content: Any, text: str, *, behind: bool, gap: str = "\n\n") -> Any:
    if isinstance(content, list):
        part = {"type": "text", "text": f"{gap}{text}" if behind else f"{text}{gap}"}
        return [*content, part] if behind else [part, *content]
    if not content:
        return text
    return f"{content}{gap}{text}" if behind else f"{text}{gap}{content}"


_roles: WeakKeyDictionary[Any, tuple[str, SystemRole]] = WeakKeyDictionary()


def system_role(tokenizer: Any) -> SystemRole:
    """How the tokenizer's chat template treats system messages, found by trying; without a template: as most do."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return SystemRole()
    known = _roles.get(tokenizer)
    if known is None or known[0] != str(template):
        known = _roles[tokenizer] = str(template), _tried(tokenizer)
    return known[1]


_ASKED, _TOLD = "qwxjq", "zkvbz"


def _tried(tokenizer: Any) -> SystemRole:
    user = {"role": "user", "content": _ASKED}

    def written(*messages: Message) -> str:
        return str(tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False))

    try:
        told = written({"role": "system", "content": _TOLD}, user)
    except Exception:  # templates raise what they like
        return SystemRole(takes=False)
    head, mark, tail = told.partition(_TOLD)
    if not mark:
        return SystemRole(takes=False)
    try:
        alone = written(user)
    except Exception:
        return SystemRole()
    inside = len(alone) >= len(head) + len(tail) and alone.startswith(head) and alone.endswith(tail)
    return SystemRole(default=alone[len(head) : len(alone) - len(tail)].strip() if inside else "")
