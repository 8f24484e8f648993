"""What the hooked layer cannot see: which tokens are padding, where in its text each one stands, its id.

The layer gets activations only. The modules around it that take `input_ids` get the rest, so a pre-hook on
each of them notes it, per thread, for as long as their forward lasts.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss.hook.history import recall, remember


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one forward.

    positions: int64 [B, T], from 0 at each text's first token, padding not counted. real: bool [B, T], False
    at padding, or None where there is none. ids: int64 [B, T], or None where the model was given embeddings.
    known: False where nothing said where the tokens stand (positions are then columns). past: int64 [B, P], the
    tokens in the KV cache before these, as `history.recall` gives them.
    """

    positions: np.ndarray
    real: np.ndarray | None
    ids: np.ndarray | None
    known: bool
    past: np.ndarray

    def first_tokens(self) -> np.ndarray:
        """int64 [B, T] for the matcher: the id of a text's first token, else -1.

        A first token whose id is not known gets one that no key has, so that it fires nothing.
        """
        if not self.known:
            return np.full(self.positions.shape, -1, np.int64)
        ids = np.iinfo(np.int64).max if self.ids is None else self.ids
        return np.where(self.positions == 0, ids, -1)


@dataclass(slots=True, eq=False)
class _Call:
    """The arguments of one forward, as they were before it ran."""

    module: nn.Module
    ids: torch.Tensor | None
    mask: Any
    position_ids: torch.Tensor | None
    cache: Any
    past: int | torch.Tensor | None
    shape: torch.Size | None  # [B, T]
    known: Tokens | None = None

    def tokens(self, batch: int, length: int) -> Tokens:
        if self.known is None or self.known.positions.shape != (batch, length):
            self.known = self._read(batch, length)
        return self.known

    def before(self, length: int) -> int:
        """How many tokens went in before these `length`; a cache that cannot say leaves it to the mask's width."""
        if self.past is not None:
            return int(self.past)
        return max(0, self.mask.shape[-1] - length) if isinstance(self.mask, torch.Tensor) else 0

    def _read(self, batch: int, length: int) -> Tokens:
        ids = _as_rows(self.ids, batch, length)
        before = self.before(length)
        past = recall(self.cache, batch, before)
        mask = self.mask
        if isinstance(mask, Mapping):  # one mask a kind of layer; the full one sees every token
            mask = mask.get("full_attention", next(iter(mask.values()), None))
        found = None
        if isinstance(mask, torch.Tensor) and mask.shape[0] in (1, batch):
            if mask.ndim == 2:
                found = _from_mask(mask, before, length)
            elif mask.ndim == 4 and mask.shape[2] == length:
                found = _from_square(mask, before, length)
        if found is not None:
            real, positions = (np.broadcast_to(part, (batch, length)) for part in found)
            return Tokens(positions, None if real.all() else real, ids, True, past)
        given = _as_rows(self.position_ids, batch, length)  # also where texts are packed into one row
        if given is None:
            given = np.broadcast_to(before + np.arange(length), (batch, length))
        return Tokens(given, None, ids, True, past)


class Context:
    """Hooks on every module between the model and one of its layers that takes `input_ids`."""

    def __init__(self, model: nn.Module, module_name: str, *, remembers: bool = False) -> None:
        """remembers: keep what went into a KV cache, for `Tokens.past` of later forwards."""
        self._remembers = remembers
        self._local = threading.local()
        self._hooks: list[Any] = []
        self._root: nn.Module | None = None
        for owner in _owners(model, module_name):
            self._root = self._root or owner
            enter, leave = torch.compiler.disable(self._enter), torch.compiler.disable(self._leave)
            self._hooks.append(owner.register_forward_pre_hook(enter, with_kwargs=True))
            self._hooks.append(owner.register_forward_hook(leave, always_call=True))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def tokens(self, shape: torch.Size) -> Tokens:
        """The tokens of the forward that runs in this thread; columns are all that is known outside of one.

        shape: [B, T] of the layer's input without its last axis, or [B * T] as some models flatten it.
        """
        stack = self._stack()
        if len(shape) != 2:
            known = stack[-1].shape if stack else None
            shape = known if known and known.numel() == shape.numel() else torch.Size((1, shape.numel()))
        batch, length = shape
        if stack:
            return stack[-1].tokens(batch, length)
        columns = np.broadcast_to(np.arange(length), (batch, length))
        return Tokens(columns, None, None, False, np.empty((batch, 0), np.int64))

    def _stack(self) -> list[_Call]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[_Call] = self._local.stack
        return stack

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if module is self._root:
            stack.clear()  # an interrupt, or an exception in compiled code, may have left one behind
        call = _read(module, args, kwargs)
        if stack:  # what the outer forward was told and did not pass on
            outer = stack[-1]
            if call.ids is None:
                call.ids = outer.ids
            if call.cache is None:
                call.cache, call.past = outer.cache, outer.past
            if call.mask is None and call.position_ids is None:
                call.mask, call.position_ids = outer.mask, outer.position_ids
        stack.append(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stack = self._stack()
        if stack and stack[-1].module is module:  # not so where another's pre-hook failed before ours
            call = stack.pop()
            if not stack and self._remembers:
                _remember(call, getattr(output, "past_key_values", None))


def _remember(call: _Call, made: Any) -> None:
    """Note the tokens that went into the KV cache; the model may have made it only in this forward."""
    cache = made if call.cache is None else call.cache
    if cache is None or call.ids is None or call.ids.ndim != 2:
        return
    tokens = call.tokens(*call.ids.shape)
    if tokens.ids is not None:
        ids = tokens.ids if tokens.real is None else np.where(tokens.real, tokens.ids, -1)
        remember(cache, tokens.past, ids, call.before(ids.shape[1]) + ids.shape[1])


def _owners(model: nn.Module, module_name: str) -> list[nn.Module]:
    owners: list[nn.Module] = []
    parts = module_name.split(".")
    for depth in range(len(parts)):
        module = model.get_submodule(".".join(parts[:depth]))
        if "input_ids" in inspect.signature(module.forward).parameters:
            owners.append(module)
    return owners


def _read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Call:
    given = kwargs
    if args:
        try:
            given = {**kwargs, **inspect.signature(module.forward).bind_partial(*args).arguments}
        except TypeError:
            pass  # the forward itself will say what is wrong
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    shape = ids.shape if isinstance(ids, torch.Tensor) else None
    if isinstance(embeds, torch.Tensor):
        shape = embeds.shape[:2]
    return _Call(
        module, ids, given.get("attention_mask"), given.get("position_ids"), given.get("past_key_values"),
        _past_length(given.get("past_key_values")), shape,
    )  # fmt: skip


def _past_length(cache: Any) -> int | torch.Tensor | None:
    """Tokens in the KV cache before this forward; None where it does not say (layers that keep no tokens)."""
    if hasattr(cache, "get_seq_length"):
        try:
            length: int | torch.Tensor = cache.get_seq_length()
        except ValueError:
            return None
        # A static cache counts on in this very tensor while the layers run.
        return length.clone() if isinstance(length, torch.Tensor) else length
    if isinstance(cache, tuple | list) and cache and cache[0] is not None:
        return int(cache[0][0].shape[-2])
    return 0


def _as_rows(values: Any, batch: int, length: int) -> np.ndarray | None:
    """int64 [batch, length], or None for anything of another shape."""
    if not isinstance(values, torch.Tensor) or values.ndim not in (1, 2):
        return None
    rows = values.reshape(-1, values.shape[-1])
    if rows.shape[1] != length or len(rows) not in (1, batch):
        return None
    return np.broadcast_to(rows.detach().cpu().numpy(), (batch, length))


def _from_mask(mask: torch.Tensor, past: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """real and positions from a 2-D mask over cache and columns, or over the columns alone."""
    real = (mask != 0).detach().cpu().numpy()
    if real.shape[1] >= past + length:
        positions = real.cumsum(axis=1) - 1  # a static cache's mask may be longer than what is in use
        return real[:, past : past + length], positions[:, past : past + length]
    if real.shape[1] == length:
        return real, past + real.cumsum(axis=1) - 1
    return None


def _from_square(mask: torch.Tensor, past: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """real and positions from a 4-D mask [B, heads, T, K] as `generate` makes it for a static cache.

    A token is padding where it may not see itself, and stands behind as many tokens as it sees.
    """
    if past + length > mask.shape[3]:
        return None
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    real = seen[:, :, past : past + length].diagonal(dim1=1, dim2=2)
    return real.detach().cpu().numpy(), (seen.sum(dim=2) - 1).detach().cpu().numpy()
