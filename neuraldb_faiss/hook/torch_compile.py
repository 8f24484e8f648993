"""Support for torch.compile: the lookup as a custom operator, and recompilation when a hook is added or removed.

The graph knows an attachment by its number only. So what it answers, a refresh, or its end, need no new code.
"""

from __future__ import annotations

import sys
from functools import wraps
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from neuraldb_faiss.hook.forward_call import Call


class Attached(Protocol):
    """What the operator stands for."""

    def added(self, keys: Tensor, output: Tensor, call: Call) -> Tensor: ...


_attached: WeakValueDictionary[int, Attached] = WeakValueDictionary()
_numbers = count()
_SCHEMA = (
    "(Tensor keys, Tensor output, Tensor? ids, Tensor? mask, Tensor? position_ids, SymInt past, Tensor? past_tensor,"
    " SymInt[] shape, int number) -> Tensor"
)
# It waits for the GPU and works on the host, which no CUDA graph can hold; older versions of torch have no such tag.
_OPTIONS: dict[str, Any] = {"tags": torch.Tag.cudagraph_unsafe} if hasattr(torch.Tag, "cudagraph_unsafe") else {}


def number(attached: Attached) -> int:
    """A new number for it, for as long as it lives."""
    found = next(_numbers)
    _attached[found] = attached
    return found


@torch.library.custom_op("neuraldb::lookup", mutates_args=(), schema=_SCHEMA, **_OPTIONS)
def _operator(
    keys: Tensor, output: Tensor, ids: Tensor | None, mask: Tensor | None, position_ids: Tensor | None,
    past: int, past_tensor: Tensor | None, shape: list[int], number: int,
) -> Tensor:  # fmt: skip
    """`output` [..., d2] with what fires on `keys` [..., d1] added; always a new tensor. The rest is the forward's
    `Call`, past -1 and shape [] for None."""
    one = _attached.get(number)
    if one is None:
        return output.clone()
    before = past_tensor if past_tensor is not None else None if past < 0 else past
    call = Call(None, ids, mask, position_ids, None, before, torch.Size(shape) if shape else None)
    return one.added(keys, output, call)


@_operator.register_fake
def _like_the_output(keys: Tensor, output: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(output)


def _no_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pass


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return None, gradient, *[None] * 7  # what is added does not depend on the output


_operator.register_autograd(_backward, setup_context=_no_context)


def lookup(keys: Tensor, output: Tensor, call: Call, number: int) -> Tensor:
    """The operator's call, as torch.compile traces it."""
    past = call.past
    mine = isinstance(past, Tensor)
    return torch.ops.neuraldb.lookup(
        keys, output, call.ids, call.full_mask(), call.position_ids, -1 if mine or past is None else past,
        past if mine else None, [] if call.shape is None else list(call.shape), number,
    )  # fmt: skip


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
            without_mark(module.__dict__)
    forget_compiled_code()


def without_mark(state: dict[str, Any]) -> dict[str, Any]:
    """A module's `__dict__` as it was before `mark`; changes and returns it."""
    own = state.get("forward")
    if hasattr(own, _USERS):
        del state["forward"]
        if (before := getattr(own, _BEFORE)) is not None:
            state["forward"] = before
    return state


def forget_compiled_code() -> None:
    """Drop what was compiled so far, to be compiled anew when next called; free where nothing was."""
    frames: Any = sys.modules.get("torch._dynamo.convert_frame")
    if frames is not None and getattr(frames, "FRAME_COUNTER", 1) > 0:  # the first reset imports for a second
        torch._dynamo.reset()
