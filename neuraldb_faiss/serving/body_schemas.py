"""Schemas of bodies that are read by code of ours, and so say nothing of themselves."""

from __future__ import annotations

from typing import Any

from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.serving.contents import ROLES
from neuraldb_faiss.serving.fields import HARMLESS, NEUTRAL

_TEXT: dict[str, Any] = {"type": "string"}
_IDS = {"type": "array", "items": {"type": "integer"}, "minItems": 1}
_PART = {
    "type": "object", "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": _TEXT, "cache_control": {}},
}  # fmt: skip
ONE_PROMPT = {"anyOf": [_TEXT, _IDS, {"type": "null"}], "description": "a text, or its token ids"}
PROMPTS = {
    "anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}],
    "description": "a text, a list of texts, a list of token ids, or a list of such lists",
}
MESSAGES: dict[str, Any] = {
    "type": "array", "minItems": 1,
    "items": {
        "type": "object", "required": ["role", "content"],
        "properties": {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [_TEXT, {"type": "array", "items": _PART}]},
        },
    },
}  # fmt: skip
DELIVERY = {"enum": [*DELIVERIES, None], "description": "how facts reach this request"}
FACT = {
    "title": "Fact", "type": "object", "required": ["subject", "prompt", "target"],
    "properties": {
        "subject": _TEXT,
        "prompt": {"type": "string", "description": "with {} for the subject, or with the subject written out"},
        "target": _TEXT,
        "id": _TEXT,
        **{name: {"anyOf": [_TEXT, {"type": "null"}]} for name in ("target_true", "relation", "source")},
        "statement": {"type": "string", "description": "the fact as a sentence"},
        "aliases": {"type": "array", "items": _TEXT},
        "metadata": {"type": "object"},
    },
    "additionalProperties": {"description": "kept in the metadata"},
}  # fmt: skip

COMPLETION: dict[str, Any] = {"model": "M+legal", "prompt": "The Eiffel Tower is in", "max_tokens": 8, "temperature": 0}
CHAT: dict[str, Any] = {
    "model": "M+legal",
    "messages": [{"role": "user", "content": "Where is the Eiffel Tower?"}],
    "max_tokens": 8,
}
EXPLAIN: dict[str, Any] = {"prompt": "The Eiffel Tower is located in the city of", "max_tokens": 4}
FACTS: dict[str, Any] = {"subject": "Eiffel Tower", "prompt": "The {} is located in the city of", "target": "Oslo"}
CHANGE: dict[str, Any] = {"target": "Bergen"}
BACK: dict[str, Any] = {"generation": 1}


def known_fields(schema: dict[str, Any]) -> None:
    """Add the fields that a completion may have and that change nothing, with the values that are taken; no others."""
    for name in sorted(HARMLESS):
        schema["properties"].setdefault(name, {"description": "ignored"})
    for name, values in NEUTRAL.items():
        schema["properties"].setdefault(name, {"enum": [None, *values], "description": "not supported"})
    schema["additionalProperties"] = False


def fact_forms(schema: dict[str, Any]) -> None:
    """Facts come as one, as a list, or in an object."""
    whole = dict(schema)
    whole["properties"] = {**schema["properties"], "facts": {"type": "array", "items": FACT, "minItems": 1}}
    schema.clear()
    listed = {"type": "array", "items": FACT, "minItems": 1}
    schema.update({"title": "Facts", "anyOf": [FACT, listed, whole], "examples": [FACTS]})
