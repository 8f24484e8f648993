"""Delivery of an attached database's facts as text, beside or instead of its residuals."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from neuraldb_faiss.config import resolve_delivery
from neuraldb_faiss.errors import CompactedError
from neuraldb_faiss.grounding.ground import Conversation, Grounded, Grounder


class Delivery:
    """How the facts of one attachment reach its requests; what an attachment's `ground` answers with.

    Attributes:
        wanted: one of `config.DELIVERIES`.
    """

    def __init__(self, wanted: str, residuals: bool, source: Callable[[], Any], tokenizer: Any = None) -> None:
        """residuals: whether the database has any. source: gives the snapshot that answers now. tokenizer: of the
        prompts that are grounded."""
        self.wanted = wanted
        self._residuals, self._source, self._tokenizer = residuals, source, tokenizer
        self._grounder: Grounder | None = None  # made when it is first needed: reading the names takes time
        self._lock = threading.Lock()

    def of(self, prompt: str | Conversation, delivery: str | None = None) -> str:
        """ "residual", "text" or "both": how facts reach this request, which may ask for another delivery."""
        wanted = delivery or self.wanted
        own = wanted == "auto" and self._residuals and self._ready().is_own_prompt(prompt)
        return resolve_delivery(wanted, residuals=self._residuals, own_prompt=own)

    def ground(self, prompt: str | Conversation, *, delivery: str | None = None, **limits: Any) -> Grounded:
        """The prompt with the statements of the facts that it names, or as it is where they are not delivered so.

        Args:
            delivery: instead of `wanted`. limits: tokenizer, max_facts, max_tokens, as for `Grounder.ground`.
        """
        if self.of(prompt, delivery) == "residual":
            return Grounded(prompt if isinstance(prompt, str) else [dict(message) for message in prompt])
        return self._ready().ground(prompt, **{"tokenizer": self._tokenizer, **limits})

    def _ready(self) -> Grounder:
        with self._lock:
            if self._grounder is None:
                self._grounder = Grounder(self._source())
            else:
                self._grounder.refresh(self._source())
            return self._grounder


class Delivering(ABC):
    """What every attachment says of its delivery."""

    _delivery: Delivery

    @abstractmethod
    def _renew(self, error: CompactedError) -> None:
        """Answer from the newest generation, with a warning: the one that answered is not whole any more."""

    @property
    def delivery(self) -> str:
        """How facts reach a request that does not say: one of `config.DELIVERIES`; see `delivery_of`."""
        return self._delivery.wanted

    def delivery_of(self, prompt: str | Conversation, delivery: str | None = None) -> str:
        """ "residual", "text" or "both" for this prompt, which may ask for another delivery than the attachment's. For
        "text", run the model under `disabled()`."""
        return self._delivery.of(prompt, delivery)

    def ground(self, prompt: str | Conversation, *, delivery: str | None = None, **limits: Any) -> Grounded:
        """The prompt with the statements of the facts that it names, as `NeuralDB.ground`, from the generation that
        answers now; as it is where they reach it as residuals alone.

        Args:
            delivery: instead of the attachment's. limits: max_facts, max_tokens, tokenizer.
        """
        try:
            return self._delivery.ground(prompt, delivery=delivery, **limits)
        except CompactedError as error:
            self._renew(error)
            return self._delivery.ground(prompt, delivery=delivery, **limits)
