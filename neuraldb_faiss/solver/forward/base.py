"""Forward passes for given residuals: whole rows, or only the tokens and layers that a residual changes.

`FullForward` is the plain definition: whole rows through the whole model, the residual added at the output
of the FFN's down-projection at the subject's last token, where the hook of an attached database adds it. Where
an attention is given, every group has a second vector (PMET), added at its output projection.

`FastForward` spares what does not depend on the residual. What stands before the subject's last token is computed
once, and kept as keys and values; of the rest, blocks up to the edited one are computed once too, and replaced in every
further pass by what they returned. It makes no assumption that `selfcheck.agrees` does not test on the model in use.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.interventions import (
    first,
    gathered_head,
    like,
    on_input,
    on_output,
    on_return,
    shared_copy,
    standing_in,
    stop_at,
)
from neuraldb_faiss.models.sites import AttentionSite, FFNSite, input_device
from neuraldb_faiss.solver.batch import Batch, Picks
from neuraldb_faiss.solver.optimizer import h_init_norm


class Forward(Protocol):
    """What the optimisation needs of a way to run the model."""

    h_norm: Tensor  # float32 [G, S]

    def logits(self, r: Tensor) -> Tensor:
        """Logits [N + K + E, vocab] at the batch's picks with vectors r [G, S, d2], differentiable in r."""
        ...

    def keep(self, groups: Sequence[int]) -> Forward:
        """The same with only the given groups; this one stays as it is."""
        ...

    def select(self, rows: Sequence[int], endless: Collection[int] = ()) -> Forward:
        """The same with only these rows, as `Batch.select` has them; this one stays as it is."""
        ...


class FullForward:
    """Whole rows, all layers, every time; any architecture whose down-projection can be hooked."""

    def __init__(self, model: Any, site: FFNSite, batch: Batch, attention: AttentionSite | None = None) -> None:
        self._model, self._device = model, input_device(model)
        self._modules = [site.module] + ([attention.module] if attention else [])
        self._set(batch)
        with torch.no_grad(), _scales(site, attention) as scales:
            model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)
        norms = []
        for output in scales:
            hidden = output.reshape(*self._ids.shape, -1)
            rows = torch.arange(len(hidden), device=hidden.device)
            norms.append(_h_norms(batch, hidden[rows, self._last.to(rows.device)]))
        self.h_norm = torch.stack(norms, 1).to(self._device)

    def logits(self, r: Tensor) -> Tensor:
        picks = self._picks

        def add(output: Tensor, vectors: Tensor) -> Tensor:
            flat = output.reshape(*self._ids.shape, -1)
            extra = vectors[picks.group_of_row].to(flat.device, flat.dtype)
            return torch.where(self._added.to(flat.device), flat + extra[:, None], flat).reshape(output.shape)

        columns = picks.column + self._last[picks.row]
        with ExitStack() as stack:
            for number, module in enumerate(self._modules):
                stack.enter_context(on_output(module, partial(add, vectors=r[:, number])))
            read = stack.enter_context(gathered_head(self._model, picks.row, columns))
            return read(self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)).to(r.device)

    def keep(self, groups: Sequence[int]) -> FullForward:
        part = copy.copy(self)
        part.h_norm = self.h_norm[list(groups)]
        part._set(self._batch.keep(groups))
        return part

    def select(self, rows: Sequence[int], endless: Collection[int] = ()) -> FullForward:
        part = copy.copy(self)
        part._set(self._batch.select(rows, endless))
        return part

    def _set(self, batch: Batch) -> None:
        self._batch = batch
        rows = batch.rows
        self._ids, self._mask = pad([row.ids for row in rows], left=False, device=self._device)
        self._last = torch.tensor([row.last for row in rows], device=self._device)
        self._picks = batch.picks(self._device)
        columns = torch.arange(self._ids.shape[1], device=self._device)
        self._added = (columns == self._last[:, None])[:, :, None]


class FastForward(ABC):
    """Only the tokens from the subject's last one on, only the layers the residual reaches.

    inject="block" adds r to the recorded output of block l*: right wherever the FFN's output goes straight
    into the residual stream. inject="ffn" runs block l* anew from its recorded input with r added at the
    down-projection: right also where a norm or a scale follows the FFN (Gemma 2 and 3, OLMo 2 and 3), for
    one layer more. With an attention (inject="ffn" only), that layer runs from its recorded output on.

    How rows of different lengths lie in one pass is a subclass's own.
    """

    _ids: Tensor  # int64 [a, b]: the tokens, however they lie
    _first: Tensor  # int64 [rows]: where among them, counted row by row, each row begins

    def __init__(
        self, model: Any, site: FFNSite, batch: Batch, inject: str, attention: AttentionSite | None = None
    ) -> None:
        blocks: Any = model.get_submodule(site.block_name.rpartition(".")[0])
        self._model, self._site, self._batch, self._inject = model, site, batch, inject
        self._attention = attention
        self._stubbed = list(blocks[: site.layer + (inject == "block")])
        self._device = input_device(model)
        self._hidden: Tensor
        self._attended: Tensor | None = None
        self.h_norm: Tensor
        with torch.no_grad():
            self._read(batch)
            self._picks = batch.picks(self._device)
            self._lay(batch)
            self._record()

    def logits(self, r: Tensor) -> Tensor:
        picks = self._picks
        with ExitStack() as stack:
            forwards: list[Callable[..., Any]] = [_pass_through(self._shape)] * len(self._stubbed)
            extra = r[picks.group_of_row, 0]
            if self._inject == "block":
                forwards[-1] = lambda *_, **__: like(self._shape, self._add(self._hidden, extra))
            else:
                if forwards:
                    forwards[-1] = lambda *_, **__: like(self._shape, self._hidden)
                stack.enter_context(on_output(self._site.module, lambda out: self._add(out, extra)))
            stack.enter_context(standing_in(self._stubbed, forwards))
            if self._attention is not None and self._attended is not None:
                attended = like(self._attention_shape, self._add(self._attended, r[picks.group_of_row, 1]))
                stack.enter_context(standing_in([self._attention.whole], [lambda *_, **__: attended]))
            read = stack.enter_context(gathered_head(self._model, *self._places(picks)))
            return read(self._call()).to(r.device)

    def keep(self, groups: Sequence[int]) -> FastForward:
        part = copy.copy(self)
        part.h_norm = self.h_norm[list(groups)]
        part._go_on(self._batch.row_index(groups), self._batch.keep(groups))
        return part

    def select(self, rows: Sequence[int], endless: Collection[int] = ()) -> FastForward:
        part = copy.copy(self)
        part._go_on(rows, self._batch.select(rows, endless))
        return part

    def _go_on(self, rows: Sequence[int], batch: Batch) -> None:
        """With the rows at these positions, which are those of `batch`, or begin with them."""
        index = torch.tensor(rows, device=self._device)
        before, self._batch = self._batch, batch
        self._picks = batch.picks(self._device)
        self._hidden = self._cut(self._hidden, before, index, batch)
        if self._attended is not None:
            self._attended = self._cut(self._attended, before, index, batch)
        self._forget(index)
        self._lay(batch)

    # ---- a subclass's own

    @abstractmethod
    def _read(self, batch: Batch) -> None:
        """Read what stands before each row's subject's last token."""

    @abstractmethod
    def _lay(self, batch: Batch) -> None:
        """Set `_ids` and `_first`, and whatever else the next passes need."""

    @abstractmethod
    def _call(self) -> Any:
        """What the model returns for `_ids`."""

    @abstractmethod
    def _forget(self, rows: Tensor) -> None:
        """Of what `_read` read, keep that of the given rows."""

    @abstractmethod
    def _cut(self, hidden: Tensor, batch: Batch, rows: Tensor, part: Batch) -> Tensor:
        """Of `hidden` states, which lie as `batch` does, those of the given rows, as they are to lie in `part`."""

    @abstractmethod
    def _places(self, picks: Picks) -> tuple[Tensor, Tensor]:
        """`picks` as rows and columns of `_ids`."""

    # ---- common

    def _record(self) -> None:
        block_in: list[Tensor] = []
        whole: list[Any] = []
        with ExitStack() as stack:
            stack.enter_context(on_input(self._site.block, lambda h: block_in.append(h)))
            if self._attention is not None:
                stack.enter_context(on_return(self._attention.whole, whole.append))
            block_out: list[Any] = []
            stack.enter_context(on_return(self._site.block, block_out.append))
            scales = stack.enter_context(_scales(self._site, self._attention))
            self._call()
        self._shape = _without_hidden(block_out[0])
        self._hidden = first(block_out[0]) if self._inject == "block" else block_in[0]
        if self._attention is not None:
            self._attended, self._attention_shape = first(whole[0]), _without_hidden(whole[0])
        norms = [_h_norms(self._batch, self._flat(out)[self._first.to(out.device)]) for out in scales]
        self.h_norm = torch.stack(norms, 1).to(self._device)

    def _flat(self, hidden: Tensor) -> Tensor:
        return hidden.reshape(self._ids.numel(), -1)

    def _add(self, hidden: Tensor, extra: Tensor) -> Tensor:
        """`hidden` states of all tokens with `extra` [rows, d2] added where each row begins."""
        places = self._first.to(hidden.device)
        added = self._flat(hidden).index_add(0, places, extra.to(hidden.device, hidden.dtype))
        return added.reshape(hidden.shape)


class PaddedForward(FastForward):
    """Rows one below the other. They are padded on the left so that every subject's last token stands in one column;
    the columns before it are in a key/value cache."""

    def _read(self, batch: Batch) -> None:
        self._positions = "position_ids" in inspect.signature(self._model.forward).parameters
        ids, self._prefix_mask = pad([r.ids[: r.last] for r in batch.rows], left=True, device=self._device)
        self._past: Any = None
        if not ids.shape[1]:
            return
        extra = {}
        if self._positions:
            extra["position_ids"] = (self._prefix_mask.cumsum(1) - 1).clamp(min=0)
        none = torch.zeros(0, dtype=torch.long, device=self._device)
        with gathered_head(self._model, none, none):
            out = self._model(input_ids=ids, attention_mask=self._prefix_mask, use_cache=True, **extra)
        self._past = out.past_key_values

    def _lay(self, batch: Batch) -> None:
        self._ids, mask = pad([r.ids[r.last :] for r in batch.rows], left=False, device=self._device)
        self._mask = torch.cat([self._prefix_mask, mask], 1)
        offset = torch.arange(self._ids.shape[1], device=self._device)
        self._position_ids = self._prefix_mask.sum(1, keepdim=True) + offset
        self._first = torch.arange(len(mask), device=self._device) * mask.shape[1]

    def _call(self) -> Any:
        extra: dict[str, Any] = {"position_ids": self._position_ids} if self._positions else {}
        if self._past is not None:
            extra["past_key_values"] = shared_copy(self._past)
        return self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=True, **extra)

    def _forget(self, rows: Tensor) -> None:
        if self._past is not None:
            self._past = shared_copy(self._past)
            self._past.reorder_cache(rows)
        self._prefix_mask = self._prefix_mask[rows]

    def _cut(self, hidden: Tensor, batch: Batch, rows: Tensor, part: Batch) -> Tensor:
        width = max(len(row.ids) - row.last for row in part.rows)
        lying = hidden.reshape(*self._ids.shape, -1)
        return lying.index_select(0, rows.to(hidden.device))[:, :width]

    def _places(self, picks: Picks) -> tuple[Tensor, Tensor]:
        return picks.row, picks.column


def _pass_through(shape: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return like(shape, args[0] if args else kwargs["hidden_states"])

    return forward


def _without_hidden(output: Any) -> Any:
    """A module's return value, for `like`, without its hidden states."""
    return output if isinstance(output, Tensor) else (None, *output[1:])


@contextmanager
def _scales(site: FFNSite, attention: AttentionSite | None) -> Iterator[list[Tensor]]:
    """End a pass at the site's block, and give the outputs whose lengths bound the vectors: the block's, or with
    an attention the FFN's and the attention's own."""
    modules = [site.module, attention.module] if attention else [site.block]
    outputs = [torch.empty(0)] * len(modules)

    with ExitStack() as stack:
        for number, module in enumerate(modules):
            stack.enter_context(on_output(module, partial(outputs.__setitem__, number)))
        stack.enter_context(stop_at(site.block, output=True))
        yield outputs


def _h_norms(batch: Batch, hidden: Tensor) -> Tensor:
    """||h_init|| of each group, float32 [G], from `hidden` [rows, d2]."""
    norms, number = [], 0
    for rows in batch.groups:
        norms.append(h_init_norm(hidden, [(number + i, r.raw, r.last) for i, r in enumerate(rows) if r.fact >= 0]))
        number += len(rows)
    return torch.tensor(norms, dtype=torch.float32)
