"""Ids of the tokens already in the KV cache: a cached forward no longer sees them, and a subject may begin there.

The ids are kept on the cache's first layer, which is given a class that carries them along wherever the cache is
reordered (beam search), repeated, selected from or copied. A cache that is cropped is shorter than what is known of
it, and the rest is forgotten. A pickled cache has its original class again, and no ids: it can be read where this
package is not installed.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.guard.gate import UNKNOWN

KEPT = 512  # tokens: a subject is shorter


def recall(past_key_values: Any, batch: int, length: int) -> np.ndarray:
    """int64 [batch, <= KEPT]: the last of the `length` tokens in the cache; -1 for padding, UNKNOWN where nobody saw
    them go in."""
    layer = _first_layer(past_key_values)
    ids, total = getattr(layer, "_neuraldb_past", (None, 0))
    if length == 0:
        return np.empty((batch, 0), np.int64)
    if ids is None or len(ids) != batch or total < length:
        return np.full((batch, min(length, KEPT)), UNKNOWN, np.int64)
    kept = ids[:, : max(0, ids.shape[1] - (total - length))]  # cropped since
    missing = min(length, KEPT) - kept.shape[1]
    return kept if missing <= 0 else np.pad(kept, ((0, 0), (missing, 0)), constant_values=UNKNOWN)


def remember(past_key_values: Any, past: np.ndarray, ids: np.ndarray, length: int) -> None:
    """Keep `ids` [B, T] (-1 for padding) behind `past`, as `recall` gave it; `length` tokens are in the cache now."""
    layer = _first_layer(past_key_values)
    if layer is None:
        return
    if not hasattr(type(layer), "_neuraldb_pick"):
        kind = type(layer)
        layer.__class__ = _carriers.setdefault(kind, _carriers.get(kind) or _carrying(kind))
    layer._neuraldb_past = np.concatenate([past, ids], axis=1)[:, -KEPT:], length


def join(past_key_values: Any, other: Any, rows: tuple[int, int], lengths: tuple[int, int]) -> None:
    """Put the history of `other` below that of `past_key_values`, each padded on the left to the longer of the two.

    rows, lengths: how many rows the two have, and how many tokens are in each.
    """
    if not any(hasattr(_first_layer(one), "_neuraldb_past") for one in (past_key_values, other)):
        return
    pasts = [
        recall(one, *size) for one, size in zip((past_key_values, other), zip(rows, lengths, strict=True), strict=True)
    ]
    width = max(past.shape[1] for past in pasts)
    past = np.concatenate([np.pad(one, ((0, 0), (width - one.shape[1], 0)), constant_values=-1) for one in pasts])
    remember(past_key_values, past, past[:, :0], max(lengths))


def crop_left(past_key_values: Any, length: int) -> None:
    """Forget all but the last `length` tokens of a cache that was cropped on the left."""
    layer = _first_layer(past_key_values)
    if hasattr(layer, "_neuraldb_past"):
        ids, _ = layer._neuraldb_past
        layer._neuraldb_past = ids[:, max(0, ids.shape[1] - length) :], length


def kind_of(layer: Any) -> type:
    """The class of a cache's layer, as it was before it carried ids."""
    kind = type(layer)
    return kind.__bases__[0] if kind in _carriers.values() else kind


def _first_layer(past_key_values: Any) -> Any:
    layers = getattr(past_key_values, "layers", None)
    return layers[0] if layers else None


_carriers: dict[type, type] = {}


def _carrying(kind: type) -> type:
    class Carrying(kind):  # type: ignore[misc]
        _neuraldb_past: tuple[np.ndarray, int]
        _layer_type = None  # a class that names one would be registered as transformers' own for it

        def _neuraldb_pick(self, rows: np.ndarray) -> None:
            ids, total = self._neuraldb_past
            self._neuraldb_past = ids[rows], total

        def reorder_cache(self, beam_idx: torch.Tensor) -> Any:
            self._neuraldb_pick(_rows(beam_idx))
            return super().reorder_cache(beam_idx)

        def batch_select_indices(self, indices: torch.Tensor) -> Any:
            self._neuraldb_pick(_rows(indices))
            return super().batch_select_indices(indices)

        def batch_repeat_interleave(self, repeats: int) -> Any:
            self._neuraldb_pick(np.repeat(np.arange(len(self._neuraldb_past[0])), repeats))
            return super().batch_repeat_interleave(repeats)

        def _neuraldb_plain(self) -> Any:
            plain: Any = object.__new__(kind)
            plain.__dict__.update({name: one for name, one in vars(self).items() if name != "_neuraldb_past"})
            return plain

        def _neuraldb_again(self, plain: Any) -> Any:
            plain.__class__ = type(self)
            plain._neuraldb_past = self._neuraldb_past
            return plain

        def __reduce_ex__(self, protocol: Any) -> Any:
            # From protocol 2 on pickle wants the class that is made to be the object's own.
            return self._neuraldb_plain().__reduce_ex__(1)

        def __copy__(self) -> Any:
            return self._neuraldb_again(copy.copy(self._neuraldb_plain()))

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self._neuraldb_again(copy.deepcopy(self._neuraldb_plain(), memo))

    Carrying.__name__ = Carrying.__qualname__ = kind.__name__
    Carrying.__module__ = kind.__module__
    return Carrying


def _rows(indices: torch.Tensor) -> np.ndarray:
    return indices.detach().cpu().numpy().astype(np.int64)
