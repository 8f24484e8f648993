"""Texts of which each begins and ends when it will: one shared cache, and one forward for the next token of all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from neuraldb_faiss.serving import kv_cache
from neuraldb_faiss.serving.batch import ClosedBatch, halves
from neuraldb_faiss.serving.forward import Forward
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.row_router import RowRouter
from neuraldb_faiss.serving.rows import Row, tell

logger = logging.getLogger(__name__)


class ContinuousBatch:
    """Rows that join at any step and leave when they end.

    Attributes: rows: those that run.
    """

    joins = True

    def __init__(self, model: Any, tokenizer: Any, metrics: Metrics) -> None:
        self._forward = Forward(model, tokenizer.pad_token_id or 0)
        self._router, self._metrics = RowRouter(metrics), metrics
        self._closed = ClosedBatch(model, tokenizer, metrics)
        self._cache: Any = None
        self.rows: list[Row] = []

    def join(self, rows: Sequence[Row]) -> None:
        """Read these prompts and choose the first token of each; those that go on are rows from now on.

        Prompts that the model fails at are halved until it is known which: that one is told so. The databases must be
        refreshed before.
        """
        waiting = [list(rows)]
        while waiting:
            group = [row for row in waiting.pop() if row.reason is None]
            if not group:
                continue
            try:
                cache = self._read(group)
            except Exception as error:
                waiting += halves(group, error)
            else:
                self._add(group, cache)

    def step(self) -> None:
        """Choose the next token of every row.

        Where the model fails, the texts go on from what they have, in halves that run to their ends by themselves.
        """
        for row in self.rows:
            if row.ask.cancelled and row.reason is None:
                row.reason = "cancelled"
        try:
            self._drop_ended()
            if self.rows:
                lengths = [row.length - 1 for row in self.rows]  # the newest token is not in the cache yet
                last = [row.ask.tokens[-1] for row in self.rows]
                self._router.route(self.rows)
                self._take(self.rows, self._forward.step(last, lengths, self._cache))
                self._drop_ended()
        except Exception as error:
            self._recover(error)
        finally:
            self._router.silence()

    def _read(self, rows: list[Row]) -> Any:
        """The cache of these prompts, whose first tokens are chosen."""
        for row in rows:
            row.fires = []  # those of a text that is read anew are found anew
        self._router.route(rows)
        try:
            logits, cache = self._forward.prefill([row.ids for row in rows], [len(row.ask.ids) for row in rows])
            self._take(rows, logits)
        finally:
            self._router.silence()
        return cache

    def _add(self, rows: list[Row], cache: Any) -> None:
        running = bool(self.rows)
        self.rows = [*self.rows, *rows]
        try:
            if running:
                kv_cache.join(self._cache, cache)
            else:
                self._cache = cache
            self._drop_ended()
        except Exception as error:
            self._recover(error)

    def _take(self, rows: Sequence[Row], scores: torch.Tensor) -> None:
        """Choose each row's next token by its scores [rows, vocabulary]."""
        self._router.collect()
        chosen, finite = scores.argmax(-1), scores.amax(-1).isfinite()  # NaN spreads
        for number, row in enumerate(rows):
            if not row.sampler.plain:
                ids = torch.tensor([row.ids], device=scores.device)
                chosen[number] = row.sampler(ids, scores[number : number + 1])
        for row, token, sound in zip(rows, chosen.tolist(), finite.tolist(), strict=True):
            row.take(token, sound)
        tell(rows, self._metrics)

    def _drop_ended(self) -> None:
        left = [number for number, row in enumerate(self.rows) if row.reason is None]
        if len(left) == len(self.rows):
            return
        tell(self.rows, self._metrics)  # cancelled ones
        self.rows = [self.rows[number] for number in left]
        if left:
            kv_cache.keep(self._cache, left, max(row.length for row in self.rows) - 1)
        else:
            self._cache = None

    def _recover(self, error: Exception) -> None:
        rows, self.rows, self._cache = self.rows, [], None
        self._router.silence()
        self._closed.finish(halves(rows, error))
