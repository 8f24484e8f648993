"""Prompts as tokens, within the limits."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from neuraldb_faiss.models.prompts import has_chat
from neuraldb_faiss.models.sites import unwrap
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.schemas import Message
from neuraldb_faiss.serving.settings import Limits


class Prompts:
    """Reads prompts for one model; threads may share it."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits) -> None:
        config: Any = unwrap(model).config
        # A copy, one thread at a time: to read a user's control tokens as text changes a tokenizer for the moment.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._limits = limits
        self._context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)

    @property
    def has_template(self) -> bool:
        """Whether messages can be read."""
        return has_chat(self._tokenizer)

    def of_text(self, text: str) -> list[int]:
        """Raises ApiError for an empty or too long prompt."""
        _check(text, "prompt")
        if not text.strip():
            raise ApiError(400, "the prompt is empty: give a text to continue", param="prompt")
        with self._lock:
            ids: list[int] = self._tokenizer(text)["input_ids"]
        return self._short(ids, "prompt")

    def of_messages(self, messages: Sequence[Message]) -> list[int]:
        """Control tokens in the messages are read as plain text: nobody begins a turn but the template.

        Raises:
            ApiError: the model has no chat template, or it refuses these messages, or they are too long.
        """
        if not self.has_template:
            raise ApiError(400, "this model has no chat template: use /v1/completions", param="messages")
        turns = [message.to_template() for message in messages]
        for turn in turns:
            _check(turn["content"], "messages")
        try:
            with self._lock:
                ids: list[int] = self._tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True
                )["input_ids"]
        except Exception as error:  # templates raise what they like
            told = f"the model's chat template refuses these messages: {error}"
            raise ApiError(400, told, param="messages") from error
        return self._short(ids, "messages")

    def room(self, prompt: int, wanted: int | None, default: int | None) -> int:
        """How many tokens the answer may have.

        Args:
            prompt: its tokens. wanted: what the client asks for. default: where it asks for nothing (None: what fits).

        Raises:
            ApiError: it asks for more than fits.
        """
        most = self._limits.new_tokens
        if wanted is not None and wanted > most:
            raise ApiError(400, f"max_tokens is {wanted}: this server allows {most}", param="max_tokens")
        left = most if self._context is None else min(most, self._context - prompt)
        if left < 1 or (wanted is not None and wanted > left):
            told = f"{prompt} tokens of prompt and {wanted or 1} of answer exceed the model's context, {self._context}"
            raise ApiError(400, told, param="max_tokens" if wanted else "prompt", code="context_length_exceeded")
        return wanted or min(left, default or left)

    def word(self, token: int) -> str:
        with self._lock:
            text: str = self._tokenizer.decode([token])
        return text

    def _short(self, ids: list[int], param: str) -> list[int]:
        if len(ids) > self._limits.prompt_tokens:
            raise ApiError(
                400, f"the prompt has {len(ids)} tokens: this server allows {self._limits.prompt_tokens}",
                param=param, code="context_length_exceeded",
            )  # fmt: skip
        return ids


def _check(text: str, param: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ApiError(400, "the text holds half of a surrogate pair", param=param) from None
