"""Ways to run a part of a model: stop at a module, stand in for its lower blocks, keep its weights out of
autograd.

Each is a context manager that leaves the model as it was, whatever is raised inside. Hooks made here live
for one forward pass of a build; the hook of an attached database is `neuraldb_faiss.hook`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Stop(Exception):
    """Ends a forward pass from a hook; `stopping` catches it."""


@contextmanager
def stopping() -> Iterator[None]:
    """Swallow the `Stop` that one of the hooks here raises."""
    try:
        yield
    except Stop:
        pass


@contextmanager
def on_input(module: nn.Module, use: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `use` with the module's first input; a returned tensor takes its place."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
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


def first(output: Any) -> Tensor:
    """The hidden states in what a block returns: recent transformers return a tensor, older ones a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def like(output: Any, hidden: Tensor) -> Any:
    """`hidden` in the return type of `output`."""
    return hidden if isinstance(output, Tensor) else (hidden, *output[1:])


@contextmanager
def standing_in(blocks: list[nn.Module], forwards: list[Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of each block; what was there (the class's or the block's own) comes back."""
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block, forward in zip(blocks, forwards, strict=True):
            block.forward = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = before


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradient for any weight, inside; both as they were afterwards."""
    wanted = [p for p in model.parameters() if p.requires_grad]
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
