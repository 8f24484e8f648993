"""Copying and pickling of an attached model, without the hooks.

A hook refers to an open database, locks and threads, none of which can be copied. So each hooked module gets a
`__getstate__` of its own, which `copy`, `pickle` and `torch.save` all ask, and which leaves out what is ours.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import nn

from neuraldb_faiss.hook.torch_compile import without_mark

_NAME = "__getstate__"
_DICTS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)  # fmt: skip
_lock = threading.Lock()


class _State:
    """A module's state without `hooks`."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.hooks: list[Any] = []

    def __call__(self) -> Any:
        state: Any = type(self._module).__getstate__(self._module)
        if not isinstance(state, dict):
            return state
        ours = {hook.id for hook in self.hooks}
        state = {name: value for name, value in state.items() if name != _NAME}
        for name in _DICTS:
            if name in state:
                state[name] = type(state[name])((key, one) for key, one in state[name].items() if key not in ours)
        return without_mark(state)


def leave_out(module: nn.Module, hook: Any) -> None:
    """Make copies and pickles of `module` without `hook`, what registering it returned, until `forget`."""
    with _lock:
        state = module.__dict__.get(_NAME)
        if not isinstance(state, _State):
            state = module.__dict__[_NAME] = _State(module)
        state.hooks.append(hook)


def forget(module: nn.Module, hook: Any) -> None:
    """Undo `leave_out`."""
    with _lock:
        state = module.__dict__.get(_NAME)
        if isinstance(state, _State) and hook in state.hooks:
            state.hooks.remove(hook)
            if not state.hooks:
                del module.__dict__[_NAME]
