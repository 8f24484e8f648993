"""Partial forward passes: read or change what a module gets, stop there, replace blocks, share a cache, freeze weights.

The context managers leave the model as it was, whatever is raised inside. Hooks made here live
for one forward pass of a build; the hook of an attached database is `neuraldb_faiss.hook`'s.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.sites import FFNSite, input_device, model_type, unwrap

_SAME_KEY = 0.99  # rounding in bfloat16 moves a cosine by some 3e-4


class _Stop(Exception):
    """Ends a forward pass from a hook."""


@contextmanager
def on_input(module: nn.Module, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `use` with the module's first input; a returned tensor takes its place."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            new = use(args[0])
            return (args if new is None else (new, *args[1:])), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        new = use(kwargs[name])
        return args, (kwargs if new is None else {**kwargs, name: new})

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_output(module: nn.Module, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `use` with the module's output (the first of a tuple); a returned tensor takes its place."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = use(first(output))
        return None if new is None else like(output, new)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def on_return(module: nn.Module, use: Callable[[Any], None]) -> Iterator[None]:
    """Call `use` with whatever the module returns."""
    handle = module.register_forward_hook(lambda _, args, output: use(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def stop_at(module: nn.Module, use: Callable[[Tensor], None] | None = None, *, output: bool = False) -> Iterator[None]:
    """End the forward pass inside the block at `module`, once `use` was called with its input (or its output)."""

    def stop(hidden: Tensor) -> None:
        if use is not None:
            use(hidden)
        raise _Stop

    with suppress(_Stop), (on_output if output else on_input)(module, stop):
        yield


def capture(
    model: Any, module: nn.Module, ids: Tensor, mask: Tensor | None = None, *, output: bool = False, **inputs: Any
) -> Tensor:
    """What `module` gets, or with `output` gives, in a pass that ends there.

    Args:
        ids: int64 [rows, width].
        mask: int64 [rows, width], 1 at real tokens; None where there is no padding.
        inputs: further arguments of the model's forward, such as a cache; `use_cache=False` by default.

    Returns:
        [rows, width, d], on the module's device and of its dtype.
    """
    seen: list[Tensor] = []
    if mask is not None:
        inputs["attention_mask"] = mask
    with stop_at(module, seen.append, output=output):
        model(input_ids=ids, **{"use_cache": False, **inputs})
    return seen[0].reshape(*ids.shape, -1)


def capture_last(model: Any, module: nn.Module, rows: Sequence[Sequence[int]], *, output: bool = False) -> Tensor:
    """As `capture`, at the last token of each of these rows of token ids: float32 [len(rows), d], on the CPU."""
    ids, mask = pad(rows, left=False, device=input_device(model))
    return at_ends(capture(model, module, ids, mask, output=output), rows)


def at_ends(hidden: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """Of hidden states [rows, width, d] those of each row's last token: float32 [rows, d], on the CPU."""
    last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
    return hidden[torch.arange(len(rows), device=hidden.device), last].float().cpu()


@torch.no_grad()
def check_causal(model: Any, site: FFNSite, ids: Sequence[int]) -> None:
    """Raises ModelError where what enters the site at a token depends on the tokens behind it: such a token has
    no key that one prompt shares with another. `ids` is any text of a few tokens."""
    model = unwrap(model)
    device = input_device(model)
    half = max(1, len(ids) // 2)
    with frozen(model):
        texts = (torch.tensor([list(text)], device=device) for text in (ids[:half], ids))
        seen = [capture(model, site.module, text)[0, half - 1].float() for text in texts]
    cosine = float(torch.cosine_similarity(seen[0], seen[1], dim=0))
    if cosine < _SAME_KEY:
        raise ModelError(
            f"this {model_type(model)} model reads its prompt in both directions (a token's activation at layer "
            f"{site.layer} changes with what follows it, cosine {cosine:.2f}), so no key stands for a subject: use a "
            "model that reads from left to right only"
        )


def first(output: Any) -> Tensor:
    """The hidden states in what a block returns: recent transformers return a tensor, older ones a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def like(output: Any, hidden: Tensor) -> Any:
    """`hidden` in the return type of `output`."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


_STANDS_IN = "_neuraldb_stands_in"


def stands_in(module: nn.Module) -> bool:
    """Whether `standing_in` has replaced the module's `forward`."""
    return hasattr(module.__dict__.get("forward"), _STANDS_IN)


@contextmanager
def standing_in(blocks: list[nn.Module], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of each block; what was there (the class's or the block's own) comes back."""
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            setattr(forward, _STANDS_IN, True)
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = before


def shared_copy(past: Any) -> Any:
    """A cache that shares the tensors of `past`; adding to it leaves `past` as it is.

    Keys and values are replaced by longer ones, so they can be shared. The states that recurrent layers keep in
    dictionaries are written over, so they are copied; and where a state's old value is needed for the gradient, the
    new one takes its place in the dictionary, not in memory.
    """
    new = copy.copy(past)
    new.layers = [copy.copy(layer) for layer in past.layers]
    for layer in new.layers:
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                own = {key: one.clone() if isinstance(one, Tensor) else one for key, one in value.items()}
                setattr(layer, name, own)
        if hasattr(layer, "update_recurrent_state"):
            layer.update_recurrent_state = partial(_set_state, layer.recurrent_states)
    return new


def _set_state(states: dict[int, Tensor], new: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
    states[state_idx] = new
    return new


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient for any weight, inside; both as they were afterwards."""
    wanted = [p for p in model.parameters() if p.requires_grad and not p.is_inference()]
    training = [m for m in model.modules() if m.training]
    try:
        for p in wanted:
            p.requires_grad_(False)
        for m in training:
            m.training = False
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True


@contextmanager
def gathered_head(model: Any, rows: Tensor, columns: Tensor) -> Iterator[Callable[[Any], Tensor]]:
    """Let the model's own head see only hidden states [rows, columns]; yields what reads the logits [N,
    vocab].

    The model still applies whatever it does to logits (soft caps, scales). A model whose head cannot be found
    computes all logits, of which the wanted ones are taken.
    """
    head = model.get_output_embeddings()
    seen = False

    def gather(hidden: Tensor) -> Tensor:
        nonlocal seen
        seen = True
        return hidden[rows.to(hidden.device), columns.to(hidden.device)].unsqueeze(0)

    def read(output: Any) -> Tensor:
        logits = output.logits if hasattr(output, "logits") else output[0]
        if seen:
            return logits.reshape(len(rows), -1)
        return logits[rows.to(logits.device), columns.to(logits.device)]

    if head is None:
        yield read
        return
    with on_input(head, gather):
        yield read
