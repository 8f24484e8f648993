"""Packed forward passes: rows of different lengths end to end in one row, each attending to itself alone.

All of a block but the attention looks at one token at a time, so only the attention must know where a row begins.
transformers lets a model's attention be exchanged (`AttentionInterface`); the one here lays queries, keys and values
out as a padded batch and puts each row's past in front. A model that has its own attention all the same, or whose
attention does more, gives other results or raises: `proof` finds out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.interventions import gathered_head
from neuraldb_faiss.models.sites import AttentionSite, FFNSite, input_device, text_config
from neuraldb_faiss.solver.batch import Batch, Picks
from neuraldb_faiss.solver.forward.base import FastForward

_SDPA = "sdpa"
_WINDOW = "sliding_attention"
_TYPES = frozenset(("full_attention", _WINDOW))
_OTHERS = ("softcap", "position_bias", "s_aux")
_NOWHERE = -1  # the position of padding


@dataclass(frozen=True, slots=True)
class Past:
    """What rows have read before: keys and values by layer, [rows, heads, columns, head size], and the position of each
    column, int64 [rows, columns], `_NOWHERE` where it is padding."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    positions: Tensor

    def select(self, rows: Tensor) -> Past:
        """That of the given rows, int64 [any number], without the columns that none of them has."""
        positions = self.positions[rows]
        columns = (positions != _NOWHERE).any(0).nonzero()[:, 0]

        def part(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
            return {
                layer: one.index_select(0, rows.to(one.device)).index_select(2, columns.to(one.device))
                for layer, one in tensors.items()
            }

        return Past(part(self.keys), part(self.values), positions[:, columns])


class Packing:
    """Rows of tokens to be run in one pass, each behind its past, if there is one."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]], past: Past | None) -> None:
        device = input_device(model)
        self._model, self._past = model, past
        padded, mask = pad(rows, left=False, device=device)
        real = mask.bool()
        lengths = real.sum(1)
        self.start = lengths.cumsum(0) - lengths  # int64 [rows]: where each row begins
        self.ids = padded[real][None]
        columns = torch.arange(padded.shape[1], device=device)
        before = torch.zeros_like(lengths) if past is None else (past.positions != _NOWHERE).sum(1)
        positions = before[:, None] + columns
        self._position_ids = positions[real][None]
        self._padded = (self.start[:, None] + columns).where(real, 0)
        self._real = real.flatten().nonzero()[:, 0]
        seen = positions.where(real, _NOWHERE)
        self._seen = seen if past is None else torch.cat([past.positions, seen], 1)
        self._distance = positions[:, :, None] - self._seen[:, None]
        self._masks: dict[tuple[int | None, int], Tensor] = {}
        self._itself = columns[:, None] + self._seen.shape[1] - len(columns) == torch.arange(
            self._seen.shape[1], device=device
        )

    def run(self) -> Any:
        """What the model returns for all tokens, in one row."""
        with self._attending(None):
            return self._model(input_ids=self.ids, position_ids=self._position_ids, use_cache=False)

    @torch.no_grad()
    def read(self) -> Past:
        """The past of whatever comes next in each row."""
        past = Past({}, {}, self._seen)
        none = torch.zeros(0, dtype=torch.long, device=self.ids.device)
        with self._attending(past), gathered_head(self._model, none, none):
            self._model(input_ids=self.ids, position_ids=self._position_ids, use_cache=False)
        return past

    @contextmanager
    def _attending(self, kept: Past | None) -> Iterator[None]:
        """Put the attention of this packing in the place of the model's; what it sees is put into `kept`."""
        config = text_config(self._model)
        types = getattr(config, "layer_types", None) or ()
        if getattr(config, "_attn_implementation", None) != _SDPA or not _TYPES.issuperset(types):
            raise ModelError("its attention cannot be exchanged")

        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, **options: Any
        ) -> tuple[Tensor, None]:
            layer: Any = module.layer_idx
            _check(options, types[layer] == _WINDOW if types else bool(getattr(config, "sliding_window", None)))
            query, key, value = self._spread(query), self._spread(key), self._spread(value)
            if self._past is not None:
                key = torch.cat([self._past.keys[layer], key], 2)
                value = torch.cat([self._past.values[layer], value], 2)
            if kept is not None:
                kept.keys[layer], kept.values[layer] = key, value
            shared = query.shape[1] // key.shape[1]  # heads that share keys are more queries of one head
            mask = self._visible(options.get("sliding_window"), shared).to(query.device)
            folded = query.reshape(len(query), key.shape[1], -1, query.shape[3])
            out = F.scaled_dot_product_attention(
                folded, key, value, attn_mask=mask, scale=options.get("scaling"), dropout_p=0.0
            )
            out = out.reshape(*query.shape[:3], value.shape[3]).transpose(1, 2).flatten(0, 1)
            return out.index_select(0, self._real.to(out.device))[None], None

        name = f"neuraldb_packed_{id(self)}"
        ALL_ATTENTION_FUNCTIONS[name] = attend
        config._attn_implementation = name
        try:
            yield
        finally:
            config._attn_implementation = _SDPA
            del ALL_ATTENTION_FUNCTIONS[name]

    def _spread(self, states: Tensor) -> Tensor:
        """[1, heads, tokens, size] as [rows, heads, columns, size]."""
        flat = states[0].transpose(0, 1).index_select(0, self._padded.flatten().to(states.device))
        return flat.unflatten(0, self._padded.shape).transpose(1, 2)

    def _visible(self, window: int | None, times: int) -> Tensor:
        """bool [rows, 1, times * columns, seen columns]: whether a token sees another, all columns several times."""
        if (window, times) not in self._masks:
            visible = (self._distance >= 0) & (self._seen != _NOWHERE)[:, None]
            if window:
                visible &= self._distance < window
            visible |= self._itself  # padding sees itself, so that its softmax is a number
            self._masks[window, times] = visible[:, None].repeat(1, 1, times, 1)
        return self._masks[window, times]


def _check(options: Mapping[str, Any], windowed: bool) -> None:
    """Raises ModelError for what would change the attention and is not done here: soft caps, biases, sinks, a window
    that is in the mask alone, which short rows would not show."""
    other = [name for name in _OTHERS if options.get(name) is not None]
    if windowed and not options.get("sliding_window"):
        other.append("a window of its own")
    if other:
        raise ModelError(f"its attention has {', '.join(other)}")


class Heads:
    """Texts that many rows begin with, read once, when first asked for."""

    def __init__(self, model: Any, texts: Sequence[Sequence[int]]) -> None:
        self._model = model
        self._texts = [tuple(text) for text in texts if text] + [()]
        self._read: Past | None = None

    def before(self, rows: Sequence[tuple[int, ...]]) -> tuple[list[int], Past | None]:
        """How many tokens of each row have been read, and their past."""
        if len(self._texts) == 1:
            return [0] * len(rows), None
        if self._read is None:
            self._read = Packing(self._model, self._texts, None).read()
        which = [self._longest(row) for row in rows]
        index = torch.tensor(which, device=self._read.positions.device)
        return [len(self._texts[i]) for i in which], self._read.select(index)

    def _longest(self, row: tuple[int, ...]) -> int:
        fits = (i for i, text in enumerate(self._texts) if row[: len(text)] == text)
        return max(fits, key=lambda i: len(self._texts[i]))


class PackedForward(FastForward):
    """All rows end to end in one, without padding; what stands before a row's subject ends is its past."""

    def __init__(
        self,
        model: Any,
        site: FFNSite,
        batch: Batch,
        inject: str,
        heads: Heads,
        attention: AttentionSite | None = None,
    ) -> None:
        self._heads = heads
        super().__init__(model, site, batch, inject, attention)

    def _read(self, batch: Batch) -> None:
        rows = [row.ids[: row.last] for row in batch.rows]
        read, self._past = self._heads.before(rows)
        rest = [ids[n:] for ids, n in zip(rows, read, strict=True)]
        if any(rest):
            self._past = Packing(self._model, rest, self._past).read()

    def _lay(self, batch: Batch) -> None:
        self._packing = Packing(self._model, _ends(batch), self._past)
        self._ids, self._first = self._packing.ids, self._packing.start

    def _call(self) -> Any:
        return self._packing.run()

    def _forget(self, rows: Tensor) -> None:
        if self._past is not None:
            self._past = self._past.select(rows)

    def _cut(self, hidden: Tensor, batch: Batch, rows: Tensor, part: Batch) -> Tensor:
        pieces = self._flat(hidden).split([len(ids) for ids in _ends(batch)])
        return torch.cat([pieces[i][: len(ids)] for i, ids in zip(rows.tolist(), _ends(part), strict=True)])[None]

    def _places(self, picks: Picks) -> tuple[Tensor, Tensor]:
        columns = self._first[picks.row] + picks.column
        return torch.zeros_like(columns), columns


def _ends(batch: Batch) -> list[tuple[int, ...]]:
    """Each row from its subject's last token on."""
    return [row.ids[row.last :] for row in batch.rows]
