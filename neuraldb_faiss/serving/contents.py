"""Prompts and messages as clients send them, read into texts and token ids."""

from __future__ import annotations

from typing import Any

from neuraldb_faiss.serving.validation_errors import wrong

ROLES = ("system", "developer", "user", "assistant")
Prompt = str | list[int]  # a text, or its token ids
Turn = dict[str, str]  # role and content, as chat templates take them

_FORMS = "must be a text, a list of texts, a list of token ids, or a list of such lists"


def read_prompt(given: Any) -> list[Prompt]:
    """The prompts of one request. Raises ApiError."""
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise wrong("prompt", f"{_FORMS}; it is {kind(given)}")
    if not given:
        raise wrong("prompt", "is an empty list: give a text to continue")
    if _is_id(given[0]):
        return [_ids(given, "prompt")]
    return [one if isinstance(one, str) else _ids(one, f"prompt[{number}]") for number, one in enumerate(given)]


def read_one_prompt(given: Any) -> Prompt | None:
    """The prompt of a request that takes one. Raises ApiError."""
    if given is None:
        return None
    found = read_prompt(given)
    if len(found) > 1:
        raise wrong("prompt", f"holds {len(found)} prompts: give one")
    return found[0]


def _ids(given: Any, where: str) -> list[int]:
    if not isinstance(given, list):
        raise wrong(where, f"is {kind(given)}: prompt {_FORMS}")
    if not given:
        raise wrong(where, "is an empty list: give at least one token id")
    for number, one in enumerate(given):
        if not _is_id(one):
            raise wrong(f"{where}[{number}]", f"is {kind(one)}: beside token ids there may be nothing else in a list")
    return given


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_messages(given: Any) -> list[Turn]:
    """A chat's messages. Raises ApiError for what is no text, or is not supported."""
    if not isinstance(given, list) or not given:
        raise wrong("messages", "must be a list of at least one message")
    return [_turn(one, f"messages[{number}]") for number, one in enumerate(given)]


def _turn(given: Any, where: str) -> Turn:
    if not isinstance(given, dict):
        raise wrong(where, f"is {kind(given)}: it must be an object with role and content")
    role = given.get("role")
    if role not in ROLES:
        told = f"is {role[:40]!r}" if isinstance(role, str) else "is missing" if role is None else f"is {kind(role)}"
        raise wrong(f"{where}.role", f"{told}: it may be {', '.join(ROLES)} (tools and functions are not supported)")
    _check_rest(given, ("role", "content"), where)
    content = _content(given.get("content"), f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(given: Any, where: str) -> str:
    if isinstance(given, str):
        return given
    if given is None:
        raise wrong(where, "is null or missing: give a text (tool calls, which have none, are not supported)")
    if not isinstance(given, list):
        raise wrong(where, f"is {kind(given)}: it must be a text or a list of text parts")
    return "".join(_part(one, f"{where}[{number}]") for number, one in enumerate(given))


def _part(given: Any, where: str) -> str:
    if not isinstance(given, dict):
        raise wrong(where, f'is {kind(given)}: a part is an object, {{"type": "text", "text": ...}}')
    form = given.get("type")
    if form != "text":
        told = f"is of type {form[:40]!r}" if isinstance(form, str) else "has no type"
        raise wrong(where, f"{told}: only parts of type 'text' are supported, no images, audio or files")
    if not isinstance(given.get("text"), str):
        raise wrong(f"{where}.text", f"is {kind(given.get('text'))}: it must be a text")
    _check_rest(given, ("type", "text", "cache_control"), where)
    text: str = given["text"]
    return text


def _check_rest(given: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for name, value in given.items():
        if name not in known and value not in (None, False, "", [], {}):
            raise wrong(f"{where}.{name[:100]}", "is not supported: leave it out")


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if isinstance(value, bool):
        return str(value).lower()
    named = {type(None): "null", str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return named.get(type(value), "something else")
