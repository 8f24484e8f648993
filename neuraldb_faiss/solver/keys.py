"""Keys: the input of the edited FFN's down-projection at the last token of a fact's subject (eq. 20).

A key depends only on the tokens up to the subject's last, so rows are cut there and facts that agree up to
there share one computation. All prefixed rows begin with the same few tokens: their key/value cache is
computed once, where the model in use is found to give the same keys that way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.interventions import at_ends, capture, frozen, shared_copy, stop_at
from neuraldb_faiss.models.memory import in_parts
from neuraldb_faiss.models.sites import FFNSite, input_device, unwrap
from neuraldb_faiss.models.tokenization import encode_all
from neuraldb_faiss.solver.prefixes import contexts

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

logger = logging.getLogger(__name__)

MAX_TOKENS = 2048  # places of one forward

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeyRows:
    """Keys of some facts, not normalised; n rows, ordered by fact.

    `keys` float32 [n, d1]; `fact` int64 [n], the index of each row's fact; `token` int32 [n], where each was taken
    (see `index.key_tokens`).
    """

    keys: np.ndarray
    fact: np.ndarray
    token: np.ndarray


def compute_keys(
    model: Any,
    tokenizer: Any,
    site: FFNSite,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    mode: Literal["two", "paper"] = "two",
    *,
    at_prompt_end: bool = False,
) -> KeyRows:
    """Keys of `facts` at `site`, by equation 20, or with `at_prompt_end` at the last token of each prompt.

    mode="two" gives two rows a fact, the raw prompt's key and the mean over the prefixed prompts; "paper"
    gives one, half of each (the reference code's weights). MAX_TOKENS bounds the places of one forward
    pass, which ends at the site's module and is halved where memory is short; the result depends on it only by
    rounding. Memory is about two float32 [facts, d1] arrays. Raises BuildError where a key is NaN or infinite, naming
    the fact, and where there is no prefix.
    """
    if not prefixes:
        raise BuildError("keys need at least one prefix: generate_prefixes makes them")
    model = unwrap(model)
    known: dict[tuple[Ids, ...], int] = {}
    group = np.empty(len(facts), dtype=np.int64)
    texts = [place for fact in facts for place in contexts(fact, prefixes)]
    spans = [(start, len(text) if at_prompt_end else end) for text, (start, end) in texts]
    encoded = encode_all(tokenizer, [text for text, _ in texts], spans)
    heads = iter([row.ids[: row.last + 1] for row in encoded])
    for i in range(len(facts)):
        group[i] = known.setdefault(tuple(islice(heads, 1 + len(prefixes))), len(known))
    runner = KeyRunner(model, site, MAX_TOKENS)
    raw = np.zeros((len(known), site.d1), dtype=np.float32)
    mean = np.zeros_like(raw)
    with frozen(model), torch.no_grad():
        for at, keys in runner.run([rows[0] for rows in known], share=False):
            raw[at] = keys
        for j in range(1, len(prefixes) + 1):
            for at, keys in runner.run([rows[j] for rows in known], share=True):
                mean[at] += keys / np.float32(len(prefixes))
    _check(raw, mean, group, facts, site)
    tokens = np.array([rows[0][0] if len(rows[0]) == 1 else -1 for rows in known], dtype=np.int32)
    index = np.arange(len(facts), dtype=np.int64)
    if mode == "paper":
        raw *= np.float32(0.5)
        raw += np.float32(0.5) * mean
        return KeyRows(raw[group], index, np.full(len(facts), -1, dtype=np.int32))
    keys = np.empty((2 * len(facts), site.d1), dtype=np.float32)
    keys[0::2], keys[1::2] = raw[group], mean[group]
    token = np.full(2 * len(facts), -1, dtype=np.int32)
    token[0::2] = tokens[group]
    return KeyRows(keys, index.repeat(2), token)


def _check(raw: np.ndarray, mean: np.ndarray, group: np.ndarray, facts: Sequence[Fact], site: FFNSite) -> None:
    bad = ~(np.isfinite(raw).all(axis=1) & np.isfinite(mean).all(axis=1))
    if bad.any():
        fact = facts[int(np.flatnonzero(bad[group])[0])]
        raise BuildError(
            f"the key of fact {fact.id} ({fact.subject!r}) at layer {site.layer} has NaN or infinite values: "
            "load the model in another dtype (--dtype float32) or leave the fact out"
        )


class KeyRunner:
    """Forward passes that end at the site's module and give its input at each row's last token."""

    def __init__(self, model: Any, site: FFNSite, max_tokens: int) -> None:
        self._model, self._site, self._max_tokens = model, site, max_tokens
        self._device = input_device(model)
        self._can_share: bool | None = None  # not known before the first try

    def run(self, rows: Sequence[Ids], *, share: bool) -> Iterator[tuple[list[int], np.ndarray]]:
        """(indices into rows, their keys float32 [len, d1]) until every row has had its turn.

        With `share`, the tokens that all rows begin with are computed once.
        """
        common, past = 0, None
        if share and len(rows) > 1 and self._can_share is not False:
            common = _common(rows)
        if common:
            past = self._prefix_cache(rows[0][:common], [min(rows, key=len), max(reversed(rows), key=len)])
        if past is None:
            common = 0

        def keys(at: list[int]) -> np.ndarray:
            return self._keys([rows[i][common:] for i in at], common, past).numpy()

        batches = by_length([len(row) - common for row in rows], self._max_tokens)
        yield from in_parts(batches, lambda at: len(at) * len(rows[at[-1]]), keys)

    def _prefix_cache(self, prefix: Ids, sample: list[Ids]) -> Any | None:
        """A cache of `prefix`; None where `sample` does not get the same keys with it as without."""
        try:
            past = DynamicCache(config=self._model.config)
            ids = torch.tensor([prefix], device=self._device)
            with stop_at(self._site.module):
                self._model(input_ids=ids, past_key_values=past, use_cache=True)
            if self._can_share is None:
                cached = self._keys([row[len(prefix) :] for row in sample], len(prefix), past)
                plain = self._keys(sample, 0, None)
                bound = 0.9999 if self._model.dtype == torch.float32 else 0.995
                self._can_share = bool((torch.cosine_similarity(cached, plain) >= bound).all())
        except Exception as error:  # whatever an unknown architecture raises, plain passes still serve it
            logger.debug("no shared prefix cache for keys: %s: %s", type(error).__name__, error)
            self._can_share = False
        return past if self._can_share else None

    def _keys(self, rows: Sequence[Ids], common: int, past: Any | None) -> Tensor:
        ids, mask = pad(rows, left=False, device=self._device)
        extra: dict[str, Any] = {}
        if past is not None:
            shared = shared_copy(past)
            shared.batch_repeat_interleave(len(rows))
            extra = {"use_cache": True, "past_key_values": shared}
            mask = torch.cat([mask.new_ones(len(rows), common), mask], 1)
        return at_ends(capture(self._model, self._site.module, ids, mask, **extra), rows)


def _common(rows: Sequence[Ids]) -> int:
    """How many first tokens all rows agree on, leaving each at least one of its own."""
    low, high = min(rows), max(rows)  # what the least and the greatest share, all in between share
    count = min(len(row) for row in rows) - 1
    for i, (a, b) in enumerate(zip(low, high, strict=False)):
        if a != b:
            return min(i, count)
    return count
