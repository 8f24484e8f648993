"""Answers as OpenAI's API words them, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.generation import Chosen
from neuraldb_faiss.serving.requests import Chat, Generating


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers. chosen: its tokens, where their probabilities were asked for. reason: why it ended."""

    text: str
    chosen: Sequence[Chosen]
    reason: str


def usage(prompt: int, made: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


class Shape:
    """The answer to one request; `prompts` knows the names of tokens."""

    def __init__(self, request: Generating, prompts: Prompts) -> None:
        self._chat = isinstance(request, Chat)
        self._wants_usage = request.wants_usage
        self._likeliest = request.likeliest
        self._prompts = prompts
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, choices: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        told = []
        for index, one in enumerate(choices):
            message = {"message": {"role": "assistant", "content": one.text, "refusal": None}}
            part = message if self._chat else {"text": one.text}
            told.append(self._choice(index, part, one.reason, one.chosen))
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": told, "usage": usage}

    def first(self, choices: int) -> list[dict[str, Any]]:
        """What a stream begins with."""
        if not self._chat:
            return []
        return [self._chunk(index, {"delta": {"role": "assistant", "content": ""}}) for index in range(choices)]

    def piece(self, index: int, text: str, chosen: Sequence[Chosen]) -> dict[str, Any]:
        return self._chunk(index, {"delta": {"content": text}} if self._chat else {"text": text}, None, chosen)

    def last(self, index: int, reason: str, chosen: Sequence[Chosen]) -> dict[str, Any]:
        """What one of the choices ends with."""
        return self._chunk(index, {"delta": {}} if self._chat else {"text": ""}, reason, chosen)

    def used(self, usage: dict[str, int]) -> list[dict[str, Any]]:
        """What a stream ends with."""
        return [{**self._chunk(0, {}), "choices": [], "usage": usage}] if self._wants_usage else []

    def _chunk(
        self, index: int, part: dict[str, Any], reason: str | None = None, chosen: Sequence[Chosen] = ()
    ) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        nothing = {"usage": None} if self._wants_usage else {}
        choice = self._choice(index, part, reason, chosen)
        return {**self._head, "object": kind, "choices": [choice], **nothing}

    def _choice(self, index: int, part: dict[str, Any], reason: str | None, chosen: Sequence[Chosen]) -> dict[str, Any]:
        logprobs = None
        if self._likeliest is not None and (chosen or "delta" not in part):
            logprobs = self._of_chat(chosen) if self._chat else self._of_text(chosen)
        return {"index": index, **part, "logprobs": logprobs, "finish_reason": reason}

    def _of_chat(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        content = [
            {**self._token(one.token, one.logprob), "top_logprobs": [self._token(*other) for other in one.likeliest]}
            for one in chosen
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        name, text = self._prompts.name(token), self._prompts.word(token)
        return {"token": name, "logprob": logprob, "bytes": list(text.encode()) if name == text else None}

    def _of_text(self, chosen: Sequence[Chosen]) -> dict[str, Any]:
        likeliest = [{self._prompts.name(token): logprob for token, logprob in one.likeliest} for one in chosen]
        return {
            "tokens": [self._prompts.name(one.token) for one in chosen],
            "token_logprobs": [one.logprob for one in chosen],
            "top_logprobs": likeliest if self._likeliest else None,
            "text_offset": [one.offset for one in chosen],
        }
