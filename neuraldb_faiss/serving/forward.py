"""A causal language model, a forward at a time: prompts read into a cache, and a token more for each of its rows."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import Any

import torch

from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.prompt_ends import prompts_end
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.serving import kv_cache

logger = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit
_TOLERANCE_HALF = 0.05


class Forward:
    """Calls a model as `generate` does; rows are padded on the left.

    Databases that are attached to the model read tokens and positions from these very arguments.
    """

    def __init__(self, model: Any, fill: int = 0) -> None:
        """fill: the token at padding."""
        plain = unwrap(model)
        self._model, self._fill = model, fill
        self.device = input_device(plain)
        taken = inspect.signature(plain.forward).parameters
        self._takes_positions = "position_ids" in taken
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}

    @torch.no_grad()
    def prefill(
        self, texts: Sequence[Sequence[int]], prompts: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, Any]:  # fmt: skip
        """Logits [texts, vocabulary] behind each of these texts, and a new cache of them. prompts: how many tokens of
        each the prompt has; all by default."""
        ids, mask = pad(texts, left=True, device=self.device, fill=self._fill)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with prompts_end(prompts or [len(text) for text in texts]):
            return self._call(ids, mask, positions, None)

    @torch.no_grad()
    def step(self, tokens: Sequence[int], lengths: Sequence[int], cache: Any) -> torch.Tensor:
        """Logits [rows, vocabulary] behind these tokens, which are added to the cache.

        lengths: tokens that each of its rows holds before.
        """
        columns = torch.arange(cache.get_seq_length() + 1)
        before = torch.tensor(lengths)[:, None]
        mask = (columns >= columns[-1] - before).long().to(self.device)
        ids = torch.tensor(tokens, device=self.device)[:, None]
        return self._call(ids, mask, before.to(self.device), cache)[0]

    def _call(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> Any:
        where = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, return_dict=True, **where,
            **self._last_only,
        )  # fmt: skip
        return out.logits[:, -1].float(), out.past_key_values


def can_join(model: Any) -> bool:
    """Whether rows of this model may be joined and dropped while they run.

    Tried with a few tokens: two texts are read apart, joined, and one goes on alone; the logits must be those of the
    whole texts.
    """
    try:
        return _same(model)
    except Exception as error:  # models raise what they like
        logger.debug("texts of this model cannot be joined: %s: %s", type(error).__name__, error)
        return False


def _same(model: Any) -> bool:
    forward = Forward(model)
    size = unwrap(model).get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    first, second, more = [[(7 * n + 1) % size for n in numbers] for numbers in (range(6), range(6, 9), range(9, 10))]
    _, cache = forward.prefill([first[:-1]])
    _, other = forward.prefill([second[:-1]])
    if not (kv_cache.can_join(cache) and kv_cache.can_join(other)):
        return False
    kv_cache.join(other, cache)
    both = forward.step([second[-1], first[-1]], [len(second) - 1, len(first) - 1], other)
    kv_cache.keep(other, [0], len(second))
    alone = forward.step(more, [len(second)], other)
    found = torch.cat([both, alone])
    wanted = torch.cat([forward.prefill([text])[0] for text in (second, first, second + more)])
    tolerance = _TOLERANCE.get(next(unwrap(model).parameters()).dtype, _TOLERANCE_HALF)
    return bool((found - wanted).abs().max() <= tolerance * wanted.abs().max())
