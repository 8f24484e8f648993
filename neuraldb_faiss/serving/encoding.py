"""Prompts as tokens, within the limits."""

from __future__ import annotations

import copy
import inspect
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from neuraldb_faiss.models.sites import unwrap
from neuraldb_faiss.models.tokenization import encode_prompt, has_chat
from neuraldb_faiss.serving.contents import Prompt, Turn, kind
from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.settings import Limits
from neuraldb_faiss.serving.validation_errors import wrong

_AS_IT_IS = "{{ messages[0]['content'] }}"


class Prompts:
    """Reads prompts for one model; threads may share it."""

    def __init__(self, model: Any, tokenizer: Any, limits: Limits) -> None:
        plain: Any = unwrap(model)
        # A copy, one thread at a time: to read a user's control tokens as text changes a tokenizer for the moment.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._lock = threading.Lock()
        self._limits = limits
        self._special = {str(token): id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._control = {id for id, token in tokenizer.added_tokens_decoder.items() if not str(token).isspace()}
        self._tokens: int = plain.get_input_embeddings().weight.shape[0]
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._context: int | None = getattr(plain.config.get_text_config(), "max_position_embeddings", None)

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
            ids = encode_prompt(self._tokenizer, text)
        return self._short(ids, "prompt")

    def of_prompt(self, given: Prompt) -> list[int]:
        """A text's tokens, or these tokens as they are. Raises ApiError as `of_text`, and for what is no token."""
        if isinstance(given, str):
            return self.of_text(given)
        self.check_ids(given, "prompt")
        return self._short(given, "prompt")

    @contextmanager
    def tokenizer(self) -> Iterator[Any]:
        """The tokenizer, for this thread alone while the block runs."""
        with self._lock:
            yield self._tokenizer

    def behind(self, said: str, text: str) -> list[int]:
        """The tokens of a text that was read by `of_text`, with other words before it, in which nothing is a control
        token; however many that are."""
        with self._lock:
            own = encode_prompt(self._tokenizer, text)
            whole = encode_prompt(self._tokenizer, said + text)
            if self._added(whole) == self._added(own):
                return whole
            bare = encode_prompt(self._tokenizer, text, special=False)
            first = own[: len(own) - len(bare)]
            plain: list[int] = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": said}], chat_template=_AS_IT_IS, sanitize_control_tokens=True,
                return_dict=True,
            )["input_ids"]  # fmt: skip
            return [*first, *plain, *bare]

    def _added(self, ids: Sequence[int]) -> list[int]:
        return [id for id in ids if id in self._control]

    def of_messages(
        self, turns: Sequence[Turn], variables: Mapping[str, Any] | None = None, *, any_length: bool = False
    ) -> list[int]:
        """Control tokens in the messages are read as plain text: nobody begins a turn but the template.

        Args:
            variables: further ones of the template, as "enable_thinking". any_length: do not check the limit.

        Raises:
            ApiError: the model has no chat template, or it refuses these messages, or they are too long; or it has not
                these variables.
        """
        if not self.has_template:
            raise ApiError(400, "this model has no chat template: use /v1/completions", param="messages")
        for turn in turns:
            _check(turn["content"], "messages")
        variables = variables or {}
        self._check_variables(variables)
        try:
            with self._lock:
                ids: list[int] = self._tokenizer.apply_chat_template(
                    turns, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True, **variables
                )["input_ids"]
        except Exception as error:  # templates raise what they like
            told = f"the model's chat template refuses these messages: {error}"
            raise ApiError(400, told, param="messages") from error
        return ids if any_length else self._short(ids, "messages")

    def most(self, reserve: int, answers: int = 1) -> int:
        """How many tokens a prompt may have.

        Args:
            reserve: tokens of an answer to it that must have room too. answers: how many answers share a batch.
        """
        found = self._limits.prompt_tokens
        if self._context is not None:
            found = min(found, self._context - reserve)
        return found if answers == 1 else min(found, self._limits.batch_tokens // answers - reserve)

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
        """A token's text inside of a text, with the space that it may begin with; special tokens by their names."""
        with self._lock:
            before, text = (
                self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
                for ids in (self._anchor, [*self._anchor, token])
            )
        return str(text[len(before) :])

    def name(self, token: int) -> str:
        """`word`; for a token that is only a part of a character, what the vocabulary calls it."""
        text = self.word(token)
        if "\ufffd" not in text:
            return text
        with self._lock:
            return str(self._tokenizer.convert_ids_to_tokens(token))

    def special_stops(self, stops: Sequence[str]) -> frozenset[int]:
        """The special tokens among stop strings: a text never holds them, so they must end it as tokens.

        Raises:
            ApiError: a stop string holds one and other text too.
        """
        for stop in stops:
            for name in self._special:
                if name in stop and stop not in self._special:
                    told = f"{stop!r} holds the special token {name} and other text: give the token alone"
                    raise wrong("stop", told)
        return frozenset(self._special[stop] for stop in stops if stop in self._special)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Raises ApiError for what is no token of this model."""
        for one in ids:
            if not 0 <= one < self._tokens:
                raise wrong(param, f"holds {str(one)[:20]}: this model's token ids are 0 to {self._tokens - 1}")

    def _check_variables(self, given: Mapping[str, Any]) -> None:
        """Refuse what is none of the template's own variables: it would be ignored, or mean something else."""
        reserved = {*inspect.signature(self._tokenizer.apply_chat_template).parameters, "messages"}
        reserved |= set(self._tokenizer.special_tokens_map)
        template = str(self._tokenizer.get_chat_template()) if given else ""
        for name, value in given.items():
            param = f"chat_template_kwargs.{name[:100]}"
            known = name.isidentifier() and name not in reserved
            if not known or not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", template):
                raise wrong(param, "is no variable of this model's chat template that may be set: leave it out")
            if isinstance(value, (list, dict)):
                raise wrong(param, f"is {kind(value)}: it may be a text, a number, true, false or null")
            if isinstance(value, str):
                _check(value, param)

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
