"""PEFT adapters in a model (LoRA and its kin), seen so that the model below them keeps its names.

Adapters lie in layers that hold the plain one as `base_layer`, in copies of whole modules (`modules_to_save`), around
an attention (adaption prompts), or beside the model (virtual tokens, shared projections). They are told by these
attributes: PEFT itself need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from neuraldb_faiss.fingerprint import ADAPTER_MARK

SCALING = "scaling:"  # begins the name of an adapter's factor, which older fingerprints lack

# LoRA and AdaLoRA begin with a product of which one of these is zero.
_ZERO_AT_FIRST = ("lora_B", "lora_E", "lora_embedding_A")
_DORA = "lora_magnitude_vector"


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor: `holder` has it as `key`. name: in a fingerprint; not dependent on what the adapter is called."""

    name: str
    tensor: torch.Tensor
    holder: nn.Module | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The weights of one module of the model without PEFT, or those that adapters add there.

    name: the module's, as the model without PEFT has it. module: the plain one, in either case.
    """

    name: str
    module: nn.Module
    weights: tuple[Weight, ...]
    added: bool


def parts(model: nn.Module) -> Iterator[Part]:
    """All that runs in `model`, each module once. Left out: a module in whose place another runs, and adapters that
    are off, merged, or not trained yet (where that shows)."""
    yield from _parts(model, "", set())


def beside(model: nn.Module, base: nn.Module) -> Iterator[Weight]:
    """What active adapters keep outside of the model that they were laid around: virtual tokens, shared weights.

    model: as PEFT wrapped it. base: the model inside.
    """
    inside = set(base.modules())
    for wrapper in _wrappers(model):
        if getattr(wrapper, "_adapters_disabled", False):
            return
        active = _active(wrapper)
        for name, child in wrapper.named_children():
            if child not in inside and base not in child.modules():
                yield from _of_active(child, ADAPTER_MARK + name, active)


def has_virtual_tokens(model: nn.Module) -> bool:
    """Whether PEFT puts learnt tokens, or their keys and values, in front of every prompt (prompt learning)."""
    for wrapper in _wrappers(model):
        configs = getattr(wrapper, "peft_config", {})
        active = [configs[one] for one in _active(wrapper) if one in configs]
        if any(getattr(one, "is_prompt_learning", False) for one in active):
            return not getattr(wrapper, "_adapters_disabled", False)
    return False


def _wrappers(model: nn.Module) -> Iterator[Any]:
    """PEFT's modules around a model, from the outside: the model's wrapper, and the adapters' own in it."""
    found: Any = getattr(model, "_orig_mod", model)
    inner = getattr(found, "get_base_model", None)
    if callable(inner):
        yield found
        base = inner()
        if found.base_model is not base:
            yield found.base_model
        if base is not found:
            yield from _wrappers(base)


def _active(wrapper: Any) -> list[str]:
    found = getattr(wrapper, "active_adapters", ())  # transformers' models have a method of this name
    return list(found) if isinstance(found, list | tuple) else []


def _parts(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[Part]:
    if module in seen:
        return
    seen.add(module)
    children = dict(module.named_children())
    adapted: Any = module
    if "base_layer" in children and hasattr(module, "active_adapters"):
        yield from _parts(children["base_layer"], name, seen)
        if not (adapted.disable_adapters or adapted.merged):
            yield from _part(name, children["base_layer"], _added(adapted, name))
    elif "modules_to_save" in children and hasattr(module, "active_adapters"):
        saved: Any = children["modules_to_save"]
        active = [one for one in adapted.active_adapters if one in saved]
        runs = saved[active[0]] if active and not adapted.disable_adapters else adapted.original_module
        yield from _parts(runs, name, seen)
    elif "token_adapter" in children and hasattr(module, "active_adapters"):
        yield from _parts(children["token_adapter"], name, seen)
    elif "adaption_prompt" in module._parameters and "model" in children:
        yield from _parts(children["model"], name, seen)
        yield from _part(name, children["model"], _own(module, ADAPTER_MARK + name))
    else:
        yield Part(name, module, tuple(_own(module, name, buffers=False)), False)
        for child_name, child in children.items():
            yield from _parts(child, f"{name}.{child_name}" if name else child_name, seen)


def _part(name: str, module: nn.Module, weights: Iterable[Weight]) -> Iterator[Part]:
    found = tuple(weights)
    if found:
        while isinstance(inner := dict(module.named_children()).get("base_layer"), nn.Module):
            module = inner
        yield Part(name, module, found, True)


def _added(layer: Any, name: str) -> Iterator[Weight]:
    active = [one for one in layer.active_adapters if not _untrained(layer, one)]
    if not active:
        return
    yield from _own(layer, ADAPTER_MARK + name)
    for child_name, child in layer.named_children():
        if child_name != "base_layer":
            yield from _of_active(child, f"{ADAPTER_MARK}{name}.{child_name}", active)
    factors = getattr(layer, "scaling", {})
    for one in active:
        if isinstance(factors, dict) and isinstance(factors.get(one), int | float):
            yield Weight(SCALING + name, torch.tensor([float(factors[one])]))


def _of_active(child: Any, name: str, active: Sequence[str]) -> Iterator[Weight]:
    """Of a container with an item for each adapter, the active ones' tensors; of anything else, all."""
    if not hasattr(child, "keys"):
        yield from _inside(child, name)
        return
    for one in active:
        if one in child:
            item = child[one]
            if isinstance(item, nn.Module):
                yield from _inside(item, name)
            else:
                yield Weight(name, item, child, one)


def _inside(module: nn.Module, name: str) -> Iterator[Weight]:
    for inner_name, inner in module.named_modules():
        yield from _own(inner, f"{name}.{inner_name}" if inner_name else name)


def _own(module: nn.Module, name: str, buffers: bool = True) -> Iterator[Weight]:
    for key, tensor in (*module._parameters.items(), *(module._buffers.items() if buffers else ())):
        if tensor is not None:
            yield Weight(f"{name}.{key}", tensor, module, key)


def _untrained(layer: Any, adapter: str) -> bool:
    """Whether the adapter adds a product of zero, as LoRA does at first; DoRA changes the weight's length too."""
    if adapter in getattr(layer, _DORA, {}):
        return False
    for name in _ZERO_AT_FIRST:
        factors = getattr(layer, name, {})
        if adapter in factors:
            factor = factors[adapter]
            tensors = list(factor.parameters()) if isinstance(factor, nn.Module) else [factor]
            if not any(one.is_meta or bool(torch.count_nonzero(one)) for one in tensors):
                return True
    return False
