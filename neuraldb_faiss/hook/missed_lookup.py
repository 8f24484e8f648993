"""Reasons why a forward did not reach the layer that a database is attached to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from neuraldb_faiss.models.interventions import stands_in
from neuraldb_faiss.models.sites import text_config


def why_missed(model: nn.Module, module_name: str, module: nn.Module) -> str | None:
    """One line that says what took the hooked `module`'s place and what to do; None where this forward was not to
    reach it.

    Legitimate are fewer layers (an early exit of assisted decoding), layers that training drops at random, and blocks
    that a build replaces by what they returned before.
    """
    found: Any = model
    above = []
    for step in module_name.split("."):
        above.append(found)
        found = getattr(found, step, None)
        if found is None:
            return (
                f"the database is no longer in the model: {module_name} was taken out of it after attaching. Call"
                " remove() on the handle; attach anew to a model that has the layer"
            )
    if found is not module:
        return (
            f"the database is no longer in the model: {module_name} was replaced after attaching (by a"
            f" {type(found).__name__}), as PEFT's merge_and_unload() and unload() do. Call remove() on the handle, and"
            " attach to the model as it is now"
        )
    if any(stands_in(one) for one in above) or _leaves_out(model, module_name):
        return None
    return (
        f"the model ran past the database: {module_name} was not called in this forward, so nothing was looked up. A"
        " fused kernel, or code that uses its weight directly, runs in its place: switch that off, or call remove() on"
        " the handle"
    )


def _leaves_out(model: nn.Module, module_name: str) -> bool:
    """Whether the model may have left the layer out by its own configuration."""
    number = re.search(r"\.(\d+)\.", module_name)
    for config in _configs(model):
        layers = getattr(config, "num_hidden_layers", None)
        if number and isinstance(layers, int) and layers <= int(number[1]):
            return True
        if model.training and any(getattr(config, name, 0) for name in ("layerdrop", "decoder_layerdrop")):
            return True
    return False


def _configs(model: nn.Module) -> Iterator[Any]:
    yield text_config(model)
    yield getattr(getattr(model, getattr(model, "base_model_prefix", ""), None), "config", None)
