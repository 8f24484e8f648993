"""Token ids, positions and padding of the current forward.

The layer gets activations only. The modules around it that take `input_ids` get the rest, so a pre-hook on
each of them notes it, per thread, for as long as their forward lasts. When the outermost one ends it is known whether
the layer was reached.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.hook import model_copies
from neuraldb_faiss.hook.forward_call import Call, read
from neuraldb_faiss.hook.kv_history import remember


class Context:
    """Hooks on every module between the model and one of its layers that takes `input_ids`.

    Attributes: missed, called where a forward that began after this was set ends without a lookup (`looked`).
    """

    missed: Callable[[], None] | None = None

    def __init__(self, model: nn.Module, module_name: str, *, remembers: bool = False) -> None:
        """remembers: keep what went into a KV cache, for `Tokens.past` of later forwards."""
        self._remembers = remembers
        self._local = threading.local()
        self._hooks: list[tuple[nn.Module, Any]] = []
        self._root: nn.Module | None = None
        self._enter_eagerly, self._leave_eagerly, self._missed_eagerly = map(
            torch.compiler.disable, (self._enter, self._leave, self._tell_missed)
        )
        for owner in _owners(model, module_name):
            self._root = self._root or owner
            names = tuple(inspect.signature(owner.forward).parameters)
            enter = partial(self._enter_as_may_be, names)
            before = owner.register_forward_pre_hook(enter, with_kwargs=True)
            after = owner.register_forward_hook(self._leave_as_may_be, always_call=True)
            for hook in (before, after):
                model_copies.leave_out(owner, hook)
                self._hooks.append((owner, hook))

    def remove(self) -> None:
        for owner, hook in self._hooks:
            hook.remove()
            model_copies.forget(owner, hook)

    def looked(self) -> None:
        """The layer was reached by the forward that runs in this thread."""
        for call in self._stack():
            call.looked = True

    def looked_in_trace(self) -> None:
        """As `looked`, of the forward that torch.compile traces."""
        for call in self._traced():
            call.looked = True

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

    @contextmanager
    def told(self, call: Call) -> Iterator[None]:
        """Use `call` as the current forward inside the block."""
        if call.is_away():
            call.send()
        self._stack().append(call)
        try:
            yield
        finally:
            self._stack().pop()

    def traced_call(self) -> Call | None:
        """Under torch.compile: the forward being traced, None where it is left to Python."""
        traced = self._traced()
        return traced[-1] if traced else None

    def _traced(self) -> list[Call]:
        """As `_stack`, of forwards that torch.compile traces; between two calls it is empty."""
        if not hasattr(self._local, "traced"):
            self._local.traced = []
        traced: list[Call] = self._local.traced
        return traced

    def _enter_as_may_be(
        self, names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if not torch.compiler.is_compiling():
            self._enter(names, module, args, kwargs)
            return
        traced = self._traced()
        if module is self._root:
            traced.clear()
        call = read(names, module, args, kwargs)
        if traced:
            call.complete(traced[-1])
        # What a KV cache holds is noted on the cache itself, which only Python can do: the graph breaks there.
        elif module is not self._root or (self._remembers and call.cached(kwargs)):
            self._enter_eagerly(names, module, args, kwargs)
            return
        traced.append(call)

    def _leave_as_may_be(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if torch.compiler.is_compiling() and self._traced():
            call = self._traced().pop()
            if not call.looked and not self._traced():
                self._missed_eagerly()
        else:
            self._leave_eagerly(module, args, output)

    def _stack(self) -> list[Call]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        stack: list[Call] = self._local.stack
        return stack

    def _enter(self, names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stack = self._stack()
        if module is self._root:
            stack.clear()  # an interrupt, or an exception in compiled code, may have left one behind
        call = read(names, module, args, kwargs)
        if stack:
            outer = stack[-1]
            call.complete(outer)
            if call.reads_as(outer):
                call.sent = outer.sent
        if call.sent is None and call.is_away():
            call.send()
        call.looked = self.missed is None
        stack.append(call)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        stack = self._stack()
        if stack and stack[-1].module is module:  # not so where another's pre-hook failed before ours
            call = stack.pop()
            if stack:
                return
            if not call.looked and output is not None:  # None: an exception is on its way
                self._tell_missed()
            if self._remembers:
                _remember(call, getattr(output, "past_key_values", None))

    def _tell_missed(self) -> None:
        if self.missed is not None:
            self.missed()


def _remember(call: Call, made: Any) -> None:
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
