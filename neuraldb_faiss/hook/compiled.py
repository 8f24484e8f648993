"""Hooks under torch.compile, whose code by itself would not notice that one came or went."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

import torch
from torch import nn

_USERS = "_neuraldb_handles"
_BEFORE = "_neuraldb_before"


def mark(module: nn.Module) -> None:
    """Tell a module with a hook from one without, for torch.compile's eyes, until as many `unmark`s.

    Dynamo does not guard on a module's hooks: code made for the block around a plain layer serves the block
    around the hooked one too, and nothing fires, silently. (Its switch, skip_nnmodule_hook_guards, holds for
    one thread only.) It does notice a `forward` of the module's own, which accelerate gives modules as well;
    this one only calls the other.
    """
    inside = module.forward
    if not hasattr(inside, _USERS):

        @wraps(inside)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return inside(*args, **kwargs)

        setattr(forward, _USERS, 0)
        setattr(forward, _BEFORE, module.__dict__.get("forward"))
        module.__dict__["forward"] = forward
    own: Any = module.__dict__["forward"]
    setattr(own, _USERS, getattr(own, _USERS) + 1)
    forget_compiled_code()


def unmark(module: nn.Module) -> None:
    """Undo one `mark`; somebody else's `forward`, laid over it since, stays."""
    own: Any = module.__dict__.get("forward")
    if hasattr(own, _USERS):
        setattr(own, _USERS, getattr(own, _USERS) - 1)
        if getattr(own, _USERS) == 0:
            del module.__dict__["forward"]
            if (before := getattr(own, _BEFORE)) is not None:
                module.__dict__["forward"] = before
    forget_compiled_code()


def forget_compiled_code() -> None:
    """Drop what was compiled so far, to be compiled anew when next called; free where nothing was."""
    frames: Any = sys.modules.get("torch._dynamo.convert_frame")
    if frames is not None and getattr(frames, "FRAME_COUNTER", 1) > 0:  # the first reset imports for a second
        torch._dynamo.reset()
