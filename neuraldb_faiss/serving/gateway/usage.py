"""Tokens, and for the log texts, of answers that are passed on unread."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from neuraldb_faiss.serving.request_record import RequestRecord

_LONGEST = 1 << 20  # bytes of an answer that are looked into


class UsageReader:
    """Looks into an answer's bytes for what it says of its tokens."""

    def __init__(self, record: RequestRecord, is_stream: bool, count: Callable[[int, int], None]) -> None:
        """record: of the request, for its log. count: called at the end with the tokens of prompt and answer."""
        self._record, self._is_stream, self._count = record, is_stream, count
        self._kept = bytearray()

    def read(self, piece: bytes) -> None:
        """The next bytes."""
        self._kept += piece
        if self._is_stream and len(self._kept) > _LONGEST:  # what comes last tells the usage
            del self._kept[: len(self._kept) - _LONGEST // 2]

    def end(self) -> None:
        """Note what was found."""
        text = self._kept.decode("utf-8", "replace")
        parts = [line[5:] for line in text.splitlines() if line.startswith("data:")] if self._is_stream else [text]
        answers: dict[int, str] = {}
        for part in parts:
            found = _object(part)
            usage = found.get("usage")
            if isinstance(usage, dict):
                tokens = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
                self._record.usage(*(one if isinstance(one, int) else 0 for one in tokens))
            choices = found.get("choices")
            for choice in choices if isinstance(choices, list) else []:
                if isinstance(choice, dict):
                    index = choice.get("index", 0)
                    answers[index] = answers.get(index, "") + _said(choice)
        self._record.answer = list(answers.values())
        self._count(self._record.prompt_tokens or 0, self._record.completion_tokens or 0)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(choice: dict[str, Any]) -> str:
    """The text of a choice, or of a piece of one."""
    inner = choice.get("message") or choice.get("delta") or {}
    text = inner.get("content") if isinstance(inner, dict) and inner else choice.get("text")
    return text if isinstance(text, str) else ""
