"""A conversation with a model that has a database, token by token."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import TextStreamer

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.inference.ask import Fired, fired_facts
from neuraldb_faiss.models.generation import end_ids, greedy
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.models.tokenization import has_chat

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.hook import Handle
    from neuraldb_faiss.hook.text_handle import TextHandle
    from neuraldb_faiss.store import StoredFact


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer in a conversation.

    Attributes:
        text: what was said. delivery: how facts reached it, "residual", "text" or "both".
        stated: facts in its prompt. fired: entries that fired, the strongest first.
        forgotten: turns at the beginning that had no room any more.
    """

    text: str
    delivery: str
    stated: tuple[StoredFact, ...]
    fired: tuple[Fired, ...]
    forgotten: int


class Conversation:
    """Turns of a user and a model, kept; every answer is greedy, with the facts that the conversation names."""

    def __init__(
        self, db: NeuralDB, handle: Handle | TextHandle, model: Any, tokenizer: Any, *, max_new_tokens: int = 256,
        system: str | None = None,
    ) -> None:  # fmt: skip
        """handle: an attachment of `db` to `model`, which knows the delivery. system: message that it begins with.

        Raises:
            ModelError: the model has no chat template.
        """
        if not has_chat(tokenizer):
            raise ModelError("the model's tokenizer has no chat template: take a chat model, or `neuraldb generate`")
        self._db, self._handle, self._model, self._tokenizer = db, handle, model, tokenizer
        self._new = max_new_tokens
        plain: Any = unwrap(model)
        self._context: int | None = getattr(plain.config.get_text_config(), "max_position_embeddings", None)
        self._start = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns = []

    def say(self, text: str, emit: Callable[[str], None] = lambda piece: None) -> Reply:
        """The model's answer to the next turn of the user, which `emit` gets in pieces while it is made.

        Where the turns outgrow the model's context, the oldest are forgotten. After an exception, as Ctrl-C raises it,
        the turn was not said.

        Raises:
            ModelError: this turn alone does not fit into the model's context.
        """
        turns = [*self._turns, {"role": "user", "content": text}]
        ids, delivery, stated, left = self._read(turns)
        rows = torch.tensor([ids], device=input_device(unwrap(self._model)))
        self._handle.clear_trace()
        with torch.no_grad(), self._handle.disabled() if delivery == "text" else nullcontext():
            out = self._model.generate(
                input_ids=rows, attention_mask=torch.ones_like(rows), streamer=_Pieces(self._tokenizer, emit),
                **greedy(left, end_ids(self._model, self._tokenizer), self._tokenizer.pad_token_id),
            )  # fmt: skip
        said = self._tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)
        forgotten = len(self._turns) + 1 - len(turns)
        self._turns = [*turns, {"role": "assistant", "content": said}]
        return Reply(said, delivery, stated, fired_facts(self._db, self._handle.trace()), forgotten)

    def _read(self, turns: list[dict[str, str]]) -> tuple[list[int], str, tuple[StoredFact, ...], int]:
        """Token ids, delivery and stated facts of these turns, and how long the answer may be; takes the oldest turns
        out of the list until they fit."""
        while True:
            messages = [*self._start, *turns]
            delivery = self._handle.delivery_of(messages)
            grounded = self._handle.ground(messages, delivery=delivery, tokenizer=self._tokenizer)
            ids = self._tokenizer.apply_chat_template(
                grounded.prompt, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True
            )["input_ids"]
            left = self._new if self._context is None else min(self._new, self._context - len(ids))
            if left >= min(self._new, 16):
                return ids, delivery, grounded.facts, left
            if len(turns) == 1:
                raise ModelError(f"this is too long: with its facts it has {len(ids)} tokens of {self._context}")
            del turns[:2]


class _Pieces(TextStreamer):
    """Hands an answer on in whole words."""

    def __init__(self, tokenizer: Any, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._emit(text)
