"""Texts answered together by one `generate`, to the end of the last of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.generation import greedy
from neuraldb_faiss.models.prompt_ends import prompts_end
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.serving.errors import model_failed
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.row_router import RowRouter
from neuraldb_faiss.serving.rows import Row, fail_ended, tell
from neuraldb_faiss.serving.sampling import RowSampler

logger = logging.getLogger(__name__)


class ClosedBatch:
    """Texts that begin together and leave together: for models whose caches cannot be joined, and for texts that the
    model failed at.

    Attributes: rows: those that wait for `step`, or run in it.
    """

    joins = False

    def __init__(self, model: Any, tokenizer: Any, metrics: Metrics) -> None:
        self._model, self._tokenizer, self._metrics = model, tokenizer, metrics
        self.rows: list[Row] = []

    def join(self, rows: Sequence[Row]) -> None:
        self.rows += rows

    def step(self) -> None:
        """Answer all, to their ends."""
        try:
            self.finish([self.rows])
        finally:
            self.rows = []

    def finish(self, groups: Sequence[Sequence[Row]]) -> None:
        """Go on with each of these groups, to its end.

        What the model fails at is halved until it is known which text it fails at: that one is told so, and the others
        go on where they were. The databases must be refreshed before.
        """
        waiting = [list(group) for group in groups]
        while waiting:
            rows = [row for row in waiting.pop() if row.reason is None]
            if not rows:
                continue
            try:
                _run(self._model, self._tokenizer, rows, self._metrics)
            except Exception as error:
                waiting += halves(rows, error)


def halves(rows: list[Row], error: Exception) -> list[list[Row]]:
    """What to try instead, last first, where the model failed at these; one alone is told that it failed."""
    fail_ended(rows, error)  # they had ended, and were not told so
    if len(rows) > 1:
        logger.warning("a batch of %d texts failed (%s): tried in halves", len(rows), type(error).__name__)
        half = len(rows) // 2
        return [rows[half:], rows[:half]]
    logger.error("the model failed at a text of %d tokens", rows[0].length, exc_info=error)
    if rows[0].reason is None:
        rows[0].fail(model_failed(error))
    return []


def _run(model: Any, tokenizer: Any, rows: Sequence[Row], metrics: Metrics) -> None:
    """Go on with these texts, to their ends; they are padded on the left."""
    device = input_device(unwrap(model))
    texts, fill = [row.ids for row in rows], tokenizer.pad_token_id or 0
    ids, mask = pad(texts, left=True, device=device, fill=fill)
    sampler = RowSampler([row.sampler for row in rows], [len(text) for text in texts])
    router = RowRouter(metrics)
    for row in rows:
        row.fires = []  # those of a text that is read anew are found anew
    try:
        router.route(rows)
        with torch.no_grad(), prompts_end([len(row.ask.ids) for row in rows]):
            model.generate(
                input_ids=ids,
                attention_mask=mask,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([_Watch(rows, sampler, router, metrics)]),
                **greedy(max(row.left for row in rows), pad=fill),
            )
    finally:
        router.silence()


class _Watch(StoppingCriteria):
    """Sees every token as it is made, hands it to its row, and says which rows have ended."""

    def __init__(self, rows: Sequence[Row], sampler: RowSampler, router: RowRouter, metrics: Metrics) -> None:
        self._rows, self._sampler, self._router, self._metrics = rows, sampler, router, metrics

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self._router.collect()
        finite = self._sampler.finite.tolist()
        for row, token, sound in zip(self._rows, input_ids[:, -1].tolist(), finite, strict=True):
            if row.reason is None:
                row.take(token, sound)
        tell(self._rows, self._metrics)
        self._router.route(self._rows)
        return torch.tensor([row.reason is not None for row in self._rows], device=input_ids.device)
