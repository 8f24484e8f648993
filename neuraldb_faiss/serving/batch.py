"""Several requests answered by one `generate`, each from its own database, to its own end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.serving.asks import Ask, Ended, Fired, Said, Started
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.sampling import RowSampler
from neuraldb_faiss.serving.tenants import Tenant
from neuraldb_faiss.serving.texts import Stops, Words

_CONTEXT = 6  # tokens of the prompt that may change how the answer's first one is written


def answer(model: Any, tokenizer: Any, asks: Sequence[Ask], metrics: Metrics) -> None:
    """Answer all of these, telling each as it goes on.

    Prompts are padded on the left. The databases must be refreshed before; none is asked for anything afterwards.
    """
    device = input_device(unwrap(model))
    width = max(len(ask.ids) for ask in asks)
    pad = tokenizer.pad_token_id or 0
    ids = torch.tensor([[pad] * (width - len(ask.ids)) + ask.ids for ask in asks], device=device)
    mask = torch.tensor([[0] * (width - len(ask.ids)) + [1] * len(ask.ids) for ask in asks], device=device)
    rows = _Rows(asks, tokenizer, _ends(model), metrics)
    config = GenerationConfig(
        max_new_tokens=max(ask.max_tokens for ask in asks), do_sample=False, num_beams=1, pad_token_id=pad
    )
    try:
        rows.route()
        for ask in asks:
            ask.send(Started(None if ask.tenant is None else ask.tenant.generation))
        with torch.no_grad():
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                logits_processor=LogitsProcessorList([RowSampler([ask.sampling for ask in asks], device)]),
                stopping_criteria=StoppingCriteriaList([rows]),
            )
        rows.finish()
    finally:
        for tenant in rows.tenants:
            tenant.answer((), 0)
            tenant.clear_trace()


def _ends(model: Any) -> frozenset[int]:
    """The tokens that end a text."""
    found = model.generation_config.eos_token_id
    return frozenset([found] if isinstance(found, int) else found or ())


class _Row:
    """One request's answer so far. reason: why it ended, None while it runs."""

    def __init__(self, ask: Ask, tokenizer: Any, ends: frozenset[int]) -> None:
        self.ask = ask
        self.tokens: list[int] = []
        self.reason: str | None = None
        self._ends = ends
        self._words = Words(tokenizer, ask.ids[-_CONTEXT:] if ask.spaced else ())
        self._stops = Stops(ask.stops)

    def take(self, token: int) -> None:
        self.tokens.append(token)
        ended = token in self._ends
        self._say("" if ended else self._words.push(token))
        if self._stops.met:
            self.reason = "stop"
        elif ended or len(self.tokens) == self.ask.max_tokens:
            self._say(self._words.rest())
            self.reason = "stop" if ended or self._stops.met else "length"
            if rest := self._stops.rest():
                self.ask.send(Said(rest))

    def _say(self, text: str) -> None:
        if text and (said := self._stops.push(text)):
            self.ask.send(Said(said))


class _Rows(StoppingCriteria):
    """Sees every token as it is made, hands it to its row, and says which rows have ended."""

    def __init__(self, asks: Sequence[Ask], tokenizer: Any, ends: frozenset[int], metrics: Metrics) -> None:
        self.rows = [_Row(ask, tokenizer, ends) for ask in asks]
        self.tenants = {ask.tenant for ask in asks if ask.tenant is not None}
        self._told: set[_Row] = set()
        self._hits = {tenant: tenant.hits for tenant in self.tenants}
        self._metrics = metrics

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if row.reason is None:
                if row.ask.cancelled:
                    row.reason = "cancelled"
                else:
                    row.take(token)
        self.route()
        self.tell()
        return torch.tensor([row.reason is not None for row in self.rows], device=input_ids.device)

    def route(self) -> None:
        """Give each database the rows that are its own and still run."""
        mine: dict[Tenant, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            if row.ask.tenant is not None and row.reason is None:
                mine[row.ask.tenant].append(number)
        for tenant in self.tenants:
            tenant.answer(mine[tenant], len(self.rows))

    def finish(self) -> None:
        """End what `generate` ended by a rule of the model's own."""
        for row in self.rows:
            row.reason = row.reason or "length"
        self.tell()

    def tell(self) -> None:
        """Tell the rows that have ended that they have, once; they are counted before."""
        ended = [number for number, row in enumerate(self.rows) if row.reason is not None and row not in self._told]
        if not ended:
            return
        for tenant, before in self._hits.items():
            self._hits[tenant] = tenant.hits
            self._metrics.fired(tenant, self._hits[tenant] - before)
        for number in ended:
            row = self.rows[number]
            self._told.add(row)
            self._metrics.answered(row.ask.tenant, len(row.ask.ids), len(row.tokens))
            fired = _fired(row.ask.tenant, number) if row.ask.explain else None
            row.ask.send(Ended(row.reason or "", row.tokens, fired))


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
