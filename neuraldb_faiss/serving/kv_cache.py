"""Rows of key-value caches: put together, picked, and cut where nobody's tokens are.

Rows are padded on the left, so that the newest token of all of them is the last column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from neuraldb_faiss.hook import kv_history

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)


def can_join(cache: Any) -> bool:
    """Whether it keeps nothing but keys and values of tokens, by layers that are known here."""
    layers: Any = getattr(cache, "layers", None)
    return bool(layers) and all(kv_history.kind_of(layer) in _KINDS for layer in layers)


def join(cache: Any, other: Any) -> None:
    """Put the rows of `other` below those of `cache`; the shorter of the two is padded on the left."""
    lengths = cache.get_seq_length(), other.get_seq_length()
    rows = cache.layers[0].keys.shape[0], other.layers[0].keys.shape[0]
    kv_history.join(cache, other, rows, lengths)
    for mine, theirs in zip(cache.layers, other.layers, strict=True):
        if mine.is_initialized:  # layers that share another's keys keep none
            mine.keys = _stack(mine.keys, theirs.keys)
            mine.values = _stack(mine.values, theirs.values)
            _set_length(mine, max(lengths))


def keep(cache: Any, rows: Sequence[int], length: int) -> None:
    """Leave these rows, and the last `length` of their columns."""
    kept = torch.tensor(rows, device=cache.layers[0].keys.device)
    cache.batch_select_indices(kept)
    kv_history.crop_left(cache, length)
    for layer in cache.layers:
        if layer.is_initialized:
            layer.keys, layer.values = (_last(one, length) for one in (layer.keys, layer.values))
            _set_length(layer, length)


def _set_length(layer: Any, length: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):  # counts what went out of its window, too
        layer.cumulative_length = length


def _stack(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[rows, heads, columns, width] of both, as many columns as the wider one has."""
    columns = max(one.shape[-2], other.shape[-2])
    return torch.cat([pad(states, (0, 0, columns - states.shape[-2], 0)) for states in (one, other)])


def _last(states: torch.Tensor, columns: int) -> torch.Tensor:
    return states[..., max(0, states.shape[-2] - columns) :, :]
