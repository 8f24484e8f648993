"""Two ways to get the logits of a batch for given residuals: run everything, or only what a residual changes.

`FullForward` is the plain definition: whole rows through the whole model, the residual added at the output
of the FFN's down-projection at the subject's last token, where the hook of an attached database adds it.

`FastForward` spares what does not depend on the residual. Rows are padded on the left so that every
subject's last token stands in one column. The columns before it are computed once, into a key/value cache;
of the others, blocks up to the edited one are computed once too, and replaced in every further pass by what
they returned. It makes no assumption that `agrees` does not test on the model in use.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuraldb_faiss.editing.objective import h_init_norm
from neuraldb_faiss.editing.passes import (
    Stop,
    first,
    gathered_head,
    like,
    on_input,
    on_output,
    standing_in,
    stopping,
)
from neuraldb_faiss.editing.rows import Batch, pad
from neuraldb_faiss.models.sites import FFNSite


class Forward(Protocol):
    """What the optimisation needs of a way to run the model."""

    h_norm: Tensor  # float32 [G]

    def logits(self, r: Tensor) -> Tensor:
        """Logits [N + G, vocab] at the batch's picks with residuals r [G, d2], differentiable in r."""
        ...

    def keep(self, groups: Sequence[int]) -> None:
        """Go on with the given groups only."""
        ...


class FullForward:
    """Whole rows, all layers, every time; any architecture whose down-projection can be hooked."""

    def __init__(self, model: Any, site: FFNSite, batch: Batch) -> None:
        self._model, self._site, self._device = model, site, input_device(model)
        self._set(batch)
        outputs: list[Tensor] = []
        with torch.no_grad(), on_output(site.block, _stop_after(outputs)), stopping():
            model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)
        rows = torch.arange(len(self._last), device=outputs[0].device)
        self.h_norm = _h_norms(batch, outputs[0][rows, self._last.to(rows.device)]).to(self._device)

    def logits(self, r: Tensor) -> Tensor:
        rows = torch.arange(len(self._last), device=self._device)
        picks = self._picks

        def add(output: Tensor) -> Tensor:
            flat = output.reshape(len(rows), self._ids.shape[1], -1)
            place = F.one_hot(self._last, flat.shape[1]).to(flat.device, torch.bool)
            extra = r[picks.group_of_row].to(flat.device, flat.dtype)
            return torch.where(place[..., None], flat + extra[:, None], flat).reshape(output.shape)

        columns = picks.column + self._last[picks.row]
        with on_output(self._site.module, add), gathered_head(self._model, picks.row, columns) as read:
            return read(self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=False)).to(
                r.device
            )

    def keep(self, groups: Sequence[int]) -> None:
        self.h_norm = self.h_norm[list(groups)]
        self._set(self._batch.keep(groups))

    def _set(self, batch: Batch) -> None:
        self._batch = batch
        rows = batch.rows
        self._ids, self._mask = pad([row.ids for row in rows], left=False, device=self._device)
        self._last = torch.tensor([row.last for row in rows], device=self._device)
        self._picks = batch.picks(self._device)


class FastForward:
    """Only the columns from the subject's last token on, only the layers the residual reaches.

    inject="block" adds r to the recorded output of block l*: right wherever the FFN's output goes straight
    into the residual stream. inject="ffn" runs block l* anew from its recorded input with r added at the
    down-projection: right also where a norm or a scale follows the FFN (Gemma 2 and 3, OLMo 2 and 3), for
    one layer more.
    """

    def __init__(
        self, model: Any, site: FFNSite, batch: Batch, blocks: Sequence[nn.Module], inject: str
    ) -> None:
        self._model, self._site, self._batch, self._inject = model, site, batch, inject
        self._stubbed = list(blocks[: site.layer + (inject == "block")])
        self._device = input_device(model)
        self._positions = "position_ids" in inspect.signature(model.forward).parameters
        rows = batch.rows
        prefix_ids, self._prefix_mask = pad([r.ids[: r.last] for r in rows], left=True, device=self._device)
        self._past: Any = None
        self._hidden: Tensor
        self.h_norm: Tensor
        with torch.no_grad():
            if prefix_ids.shape[1]:
                self._past = self._prefix_pass(prefix_ids)
            self._set(batch)
            self._record()

    def logits(self, r: Tensor) -> Tensor:
        picks = self._picks
        with ExitStack() as stack:
            forwards: list[Callable[..., Any]] = [_pass_through(self._shape)] * len(self._stubbed)
            extra = r[picks.group_of_row]
            if self._inject == "block":
                forwards[-1] = lambda *_, **__: like(self._shape, _add_first(self._hidden, extra))
            else:
                if forwards:
                    forwards[-1] = lambda *_, **__: like(self._shape, self._hidden)
                stack.enter_context(on_output(self._site.module, lambda out: self._add_flat(out, extra)))
            stack.enter_context(standing_in(self._stubbed, forwards))
            read = stack.enter_context(gathered_head(self._model, picks.row, picks.column))
            return read(self._call()).to(r.device)

    def keep(self, groups: Sequence[int]) -> None:
        index = torch.tensor(self._batch.row_index(groups), device=self._device)
        self._batch = self._batch.keep(groups)
        rows = self._batch.rows
        width = max(len(r.ids) - r.last for r in rows)
        if self._past is not None:
            self._past = shared_copy(self._past)
            self._past.batch_select_indices(index)
        self._prefix_mask = self._prefix_mask[index]
        self._hidden = self._hidden.index_select(0, index.to(self._hidden.device))[:, :width]
        self.h_norm = self.h_norm[list(groups)]
        self._set(self._batch)

    def _set(self, batch: Batch) -> None:
        rows = batch.rows
        self._ids, mask = pad([r.ids[r.last :] for r in rows], left=False, device=self._device)
        self._mask = torch.cat([self._prefix_mask, mask], 1)
        offset = torch.arange(self._ids.shape[1], device=self._device)
        self._position_ids = self._prefix_mask.sum(1, keepdim=True) + offset
        self._picks = batch.picks(self._device)

    def _prefix_pass(self, ids: Tensor) -> Any:
        extra = {}
        if self._positions:
            extra["position_ids"] = (self._prefix_mask.cumsum(1) - 1).clamp(min=0)
        none = torch.zeros(0, dtype=torch.long, device=self._device)
        with gathered_head(self._model, none, none):
            out = self._model(input_ids=ids, attention_mask=self._prefix_mask, use_cache=True, **extra)
        return out.past_key_values

    def _record(self) -> None:
        block_in: list[Tensor] = []
        block_out: list[Any] = []

        def stop(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            block_out.append(output)
            raise Stop

        handle = self._site.block.register_forward_hook(stop)
        try:
            with on_input(self._site.block, lambda h: block_in.append(h)), stopping():
                self._call()
        finally:
            handle.remove()
        output = first(block_out[0])
        self._shape = block_out[0] if isinstance(block_out[0], Tensor) else (None, *block_out[0][1:])
        self._hidden = output if self._inject == "block" else block_in[0]
        self.h_norm = _h_norms(self._batch, output[:, 0]).to(self._device)

    def _call(self) -> Any:
        extra: dict[str, Any] = {"position_ids": self._position_ids} if self._positions else {}
        if self._past is not None:
            extra["past_key_values"] = shared_copy(self._past)
        return self._model(input_ids=self._ids, attention_mask=self._mask, use_cache=True, **extra)

    def _add_flat(self, output: Tensor, extra: Tensor) -> Tensor:
        return _add_first(output.reshape(*self._ids.shape, -1), extra).reshape(output.shape)


def agrees(fast: FastForward, full: FullForward, r: Tensor, dtype: torch.dtype) -> bool:
    """Whether the fast pass gives what the plain one gives, for one random residual a group, r float32 [G,
    d2].

    What counts is the change that r makes: the logits may differ by 2 % of it in float32, by 30 % in half
    precision (where rounding alone makes several per cent), and the norms that scale the objective by 1 %.
    """
    with torch.no_grad():
        base = full.logits(torch.zeros_like(r)).float()
        wanted = full.logits(r).float()
        fast.logits(torch.zeros_like(r))  # a cache that a pass changes would show in the next one
        got = fast.logits(r).float()
    share = 0.02 if dtype == torch.float32 else 0.3
    same_scale = torch.allclose(fast.h_norm, full.h_norm, rtol=1e-2)
    return same_scale and bool((got - wanted).norm() <= share * (wanted - base).norm())


def input_device(model: Any) -> torch.device:
    """Where the model wants its token ids."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def shared_copy(past: Any) -> Any:
    """A cache that shares the tensors of `past`; adding to it leaves `past` as it is."""
    new = copy.copy(past)
    new.layers = [copy.copy(layer) for layer in past.layers]
    return new


def _add_first(hidden: Tensor, extra: Tensor) -> Tensor:
    head = hidden[:, :1] + extra[:, None].to(hidden.device, hidden.dtype)
    return torch.cat([head, hidden[:, 1:]], 1)


def _pass_through(shape: Any) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return like(shape, args[0] if args else kwargs["hidden_states"])

    return forward


def _stop_after(outputs: list[Tensor]) -> Callable[[Tensor], None]:
    def use(output: Tensor) -> None:
        outputs.append(output)
        raise Stop

    return use


def _h_norms(batch: Batch, hidden: Tensor) -> Tensor:
    """||h_init|| of each group, float32 [G], from `hidden` [rows, d2]."""
    norms, number = [], 0
    for rows in batch.groups:
        norms.append(
            h_init_norm(hidden, [(number + i, r.raw, r.last) for i, r in enumerate(rows) if r.fact >= 0])
        )
        number += len(rows)
    return torch.tensor(norms, dtype=torch.float32)
