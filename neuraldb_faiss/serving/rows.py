"""One text that is being answered: its tokens so far, and what its client has been told."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.hook import Fire
from neuraldb_faiss.serving.detokenizer import Stops, Words
from neuraldb_faiss.serving.errors import ApiError, model_failed, unreadable
from neuraldb_faiss.serving.generation import Ask, Chosen, Ended, Failed, Fired, Said, Started
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.sampling import Sampler
from neuraldb_faiss.serving.tenants import Tenant

logger = logging.getLogger(__name__)

_CONTEXT = 6  # tokens of the prompt that may change how the answer's first one is written


class Row:
    """One answer so far.

    Attributes: reason: why it ended, None while it runs. told: that it ended was told. fires: what fired in it, where
        that was asked for.
    """

    def __init__(self, ask: Ask, tokenizer: Any, ends: frozenset[int], device: torch.device) -> None:
        """ends: the tokens that end every text. device: where logits come."""
        self.ask = ask
        self.sampler = Sampler(ask.sampling, ask.likeliest, device)
        self.reason: str | None = None
        self.told = False
        self.fires: list[Fire] = []
        self._untold: list[Chosen] = []
        self._ends = ends | ask.stop_ids
        self._words = Words(tokenizer, ask.ids[-_CONTEXT:] if ask.spaced else ())
        self._stops = Stops(ask.stops)
        self._made = self._said = 0  # characters

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.ask.ids, *self.ask.tokens]

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.ask.ids) + len(self.ask.tokens)

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return self.ask.max_tokens - len(self.ask.tokens)

    def take(self, token: int, finite: bool) -> None:
        """The next token. finite: whether it was chosen from finite logits."""
        if self.ask.cancelled:
            self.reason = "cancelled"
        elif not finite:
            self.fail(ApiError(500, "the model's logits are not finite here: serve it with --dtype float32"))
        else:
            self._take(token)

    def _take(self, token: int) -> None:
        tenant, first = self.ask.tenant, not self.ask.tokens
        self.ask.tokens.append(token)
        if first:
            self.ask.send(Started(None if tenant is None else tenant.generation))
        ended = token in self._ends
        if self.sampler.logprob is not None and not ended:
            self._untold.append(Chosen(token, self.sampler.logprob, self.sampler.likeliest, self._made))
        self._make("" if ended else self._words.push(token))
        if self._stops.met:
            self.reason = "stop"
        elif ended or not self.left:
            self._make(self._words.rest())
            self.reason = "stop" if ended or self._stops.met else "length"
            self._say(self._stops.rest())
        if self._stops.met:
            self._untold = []  # of the stop string

    def fail(self, error: ApiError) -> None:
        self.reason, self.told = "failed", True
        self.ask.send(Failed(error))

    def end(self) -> None:
        """Tell that it ended."""
        try:
            fired = self._fired() if self.ask.explain else None
        except NeuralDBError as error:
            logger.error("what fired cannot be told: %s", error)
            self.fail(unreadable(self.ask.tenant.name if self.ask.tenant else "", error))
        else:
            self.told = True
            self.ask.send(Ended(self.reason or "", self.ask.tokens, fired, self._untold))

    def _fired(self) -> list[Fired]:
        """What fired, in the order of the text."""
        tenant = self.ask.tenant
        if tenant is None:
            return []
        return [
            Fired(fire.position, fire.entry_id, fire.score, _facts(tenant, fire.entry_id))
            for fire in sorted(self.fires, key=lambda fire: fire.position)
        ]

    def _make(self, text: str) -> None:
        if text:
            self._made += len(text)
            self._say(self._stops.push(text))

    def _say(self, text: str) -> None:
        if not text:
            return
        self._said += len(text)
        chosen = [one for one in self._untold if one.offset < self._said]
        self._untold = self._untold[len(chosen) :]
        self.ask.send(Said(text, chosen))


def _facts(tenant: Tenant, entry: int) -> list[dict[str, str]]:
    return [
        {"id": fact.id, "subject": fact.subject, "prompt": fact.prompt, "target": fact.target}
        for fact in tenant.facts_of(entry)
    ]


def tell(rows: Iterable[Row], metrics: Metrics) -> None:
    """Tell those that have ended that they have, once; they are counted before."""
    for row in rows:
        if row.reason is not None and not row.told:
            metrics.answered(row.ask.tenant, len(row.ask.ids), len(row.ask.tokens))
            row.end()


def fail_ended(rows: Iterable[Row], error: Exception) -> None:
    """Tell those that have ended, and were not told so, that the model failed."""
    for row in rows:
        if row.reason is not None and not row.told:
            row.fail(model_failed(error))
