"""Several requests answered by one `generate`, each from its own database, to its own end."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.generation import greedy
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.serving.detokenizer import Stops, Words
from neuraldb_faiss.serving.errors import ApiError, model_failed, unreadable
from neuraldb_faiss.serving.generation import Ask, Chosen, Ended, Failed, Fired, Said, Started
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.sampling import RowSampler, Sampler
from neuraldb_faiss.serving.tenants import Tenant

logger = logging.getLogger(__name__)

_CONTEXT = 6  # tokens of the prompt that may change how the answer's first one is written


def answer(model: Any, tokenizer: Any, asks: Sequence[Ask], ends: frozenset[int], metrics: Metrics) -> None:
    """Answer all of these, telling each as it goes on.

    What the model fails at is halved until it is known which text it fails at: that one is told so, and the others go
    on where they were. The databases must be refreshed before; none is asked for anything afterwards.

    Args:
        ends: the tokens that end every text.
    """
    device = input_device(unwrap(model))
    waiting = [[_Row(ask, tokenizer, ends, device) for ask in asks]]
    while waiting:
        rows = [row for row in waiting.pop() if row.reason is None]
        if not rows:
            continue
        try:
            _run(model, tokenizer, rows, metrics)
        except Exception as error:
            if len(rows) > 1:
                logger.warning("a batch of %d texts failed (%s): tried in halves", len(rows), type(error).__name__)
                half = len(rows) // 2
                waiting += [rows[half:], rows[:half]]
            else:
                logger.exception("the model failed at a text of %d tokens", len(rows[0].ids))
                rows[0].reason = rows[0].reason or "failed"
            for row in rows:
                if row.reason is not None and not row.told:  # this one, or one that had ended, and was not told so
                    row.fail(model_failed(error))


def _run(model: Any, tokenizer: Any, rows: Sequence[_Row], metrics: Metrics) -> None:
    """Go on with these texts, to their ends; they are padded on the left."""
    device = input_device(unwrap(model))
    texts, fill = [row.ids for row in rows], tokenizer.pad_token_id or 0
    ids, mask = pad(texts, left=True, device=device, fill=fill)
    sampler = RowSampler([row.sampler for row in rows], [len(text) for text in texts])
    batch = _Batch(rows, sampler, metrics)
    try:
        batch.route()
        for row in rows:
            row.start()
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([batch]),
                **greedy(max(row.left for row in rows), pad=fill),
            )
    finally:
        for tenant in batch.tenants:
            tenant.answer((), 0)
            tenant.clear_trace()


class _Row:
    """One request's answer so far.

    Attributes: reason: why it ended, None while it runs. told: that it ended was told.
    """

    def __init__(self, ask: Ask, tokenizer: Any, ends: frozenset[int], device: torch.device) -> None:
        self.ask = ask
        self.tokens: list[int] = []
        self.sampler = Sampler(ask.sampling, ask.likeliest, device)
        self.reason: str | None = None
        self.told = False
        self.untold: list[Chosen] = []
        self._started = False
        self._ends = ends | ask.stop_ids
        self._words = Words(tokenizer, ask.ids[-_CONTEXT:] if ask.spaced else ())
        self._stops = Stops(ask.stops)
        self._made = self._said = 0  # characters

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.ask.ids, *self.tokens]

    @property
    def left(self) -> int:
        """Tokens that the answer may still get."""
        return self.ask.max_tokens - len(self.tokens)

    def start(self) -> None:
        if not self._started:
            self._started = True
            self.ask.send(Started(None if self.ask.tenant is None else self.ask.tenant.generation))

    def take(self, token: int) -> None:
        """The next token."""
        self.tokens.append(token)
        ended = token in self._ends
        if self.sampler.logprob is not None and not ended:
            self.untold.append(Chosen(token, self.sampler.logprob, self.sampler.likeliest, self._made))
        self._make("" if ended else self._words.push(token))
        if self._stops.met:
            self.reason = "stop"
        elif ended or not self.left:
            self._make(self._words.rest())
            self.reason = "stop" if ended or self._stops.met else "length"
            self._say(self._stops.rest())
        if self._stops.met:
            self.untold = []  # of the stop string

    def fail(self, error: ApiError) -> None:
        self.reason, self.told = "failed", True
        self.ask.send(Failed(error))

    def _make(self, text: str) -> None:
        if text:
            self._made += len(text)
            self._say(self._stops.push(text))

    def _say(self, text: str) -> None:
        if not text:
            return
        self._said += len(text)
        chosen = [one for one in self.untold if one.offset < self._said]
        self.untold = self.untold[len(chosen) :]
        self.ask.send(Said(text, chosen))


class _Batch(StoppingCriteria):
    """Sees every token as it is made, hands it to its row, and says which rows have ended."""

    def __init__(self, rows: Sequence[_Row], sampler: RowSampler, metrics: Metrics) -> None:
        self.tenants = {row.ask.tenant for row in rows if row.ask.tenant is not None}
        self._rows = rows
        self._sampler = sampler
        self._hits = {tenant: tenant.hits for tenant in self.tenants}
        self._metrics = metrics

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        finite = self._sampler.finite.tolist()
        for row, token, sound in zip(self._rows, input_ids[:, -1].tolist(), finite, strict=True):
            if row.reason is not None:
                continue
            if row.ask.cancelled:
                row.reason = "cancelled"
            elif not sound:
                row.fail(ApiError(500, "the model's logits are not finite here: serve it with --dtype float32"))
            else:
                row.take(token)
        self.route()
        self.tell()
        return torch.tensor([row.reason is not None for row in self._rows], device=input_ids.device)

    def route(self) -> None:
        """Give each database the rows that are its own and still run."""
        mine: dict[Tenant, list[int]] = defaultdict(list)
        for number, row in enumerate(self._rows):
            if row.ask.tenant is not None and row.ask.fires and row.reason is None:
                mine[row.ask.tenant].append(number)
        for tenant in self.tenants:
            tenant.answer(mine[tenant], len(self._rows))

    def tell(self) -> None:
        """Tell the rows that have ended that they have, once; they are counted before."""
        ended = [number for number, row in enumerate(self._rows) if row.reason is not None and not row.told]
        if not ended:
            return
        for tenant, before in self._hits.items():
            self._hits[tenant] = tenant.hits
            self._metrics.fired(tenant, self._hits[tenant] - before)
        for number in ended:
            row = self._rows[number]
            self._metrics.answered(row.ask.tenant, len(row.ask.ids), len(row.tokens))
            try:
                fired = _fired(row.ask.tenant, number) if row.ask.explain else None
            except NeuralDBError as error:
                logger.error("what fired cannot be told: %s", error)
                row.fail(unreadable(row.ask.tenant.name if row.ask.tenant else "", error))
            else:
                row.told = True
                row.ask.send(Ended(row.reason or "", row.tokens, fired, row.untold))


def _fired(tenant: Tenant | None, number: int) -> list[Fired]:
    """What fired in this row of the batch, in the order of the text."""
    if tenant is None:
        return []
    fires = [fire for fire in tenant.trace() if fire.sequence == number]
    return [
        Fired(
            fire.position, fire.entry_id, fire.score,
            [{"id": fact.id, "subject": fact.subject, "prompt": fact.prompt, "target": fact.target}
             for fact in tenant.facts_of(fire.entry_id)],
        )
        for fire in sorted(fires, key=lambda fire: fire.position)
    ]  # fmt: skip
