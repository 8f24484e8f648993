"""PEFT's layers in a model (LoRA and its kin), seen so that the model below them keeps its names.

A tuned layer holds the plain one as `base_layer` and the adapters' weights beside it. They are told by these
attributes: PEFT itself need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MARK = "adapter:"  # begins the name of an adapter's weight in a fingerprint

_SAVED = ".modules_to_save."  # a whole module that was trained in the place of another
_REPLACED = ".original_module"


def tuned_layers(model: nn.Module) -> dict[str, Any]:
    """Name -> layer, of the layers that PEFT laid around a plain one."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "active_adapters")
    }


def plain_name(name: str, tuned: Mapping[str, Any]) -> str | None:
    """The name of a module as the model without PEFT has it, or for an adapter's own module one that begins with
    MARK and does not depend on what the adapter is called. None where it does nothing: an adapter that is off,
    merged, or not trained yet; a module in whose place another runs."""
    owner = next((one for one in tuned if name.startswith(f"{one}.")), None)
    if owner is None:
        plain, saved, _ = name.partition(_SAVED)
        return None if name.endswith(_REPLACED) and not saved else plain
    rest = name[len(owner) + 1 :].split(".")
    if rest[0] == "base_layer":
        return ".".join([owner, *rest[1:]])
    layer = tuned[owner]
    active = [adapter for adapter in layer.active_adapters if adapter in rest]
    if not active or layer.disable_adapters or layer.merged or _untrained(layer, active[0]):
        return None
    return MARK + ".".join([owner, *(part for part in rest if part not in active)])


def _untrained(layer: Any, adapter: str) -> bool:
    """LoRA begins with a product of zero."""
    last = getattr(layer, "lora_B", {})
    return adapter in last and not bool(torch.count_nonzero(last[adapter].weight))
