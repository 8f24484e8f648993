"""Where a model keeps its facts: the down-projection of one layer's feed-forward network (FFN).

A key is what enters that projection (length d1, the intermediate size) and a residual is added to what leaves
it (length d2, the hidden size): eq. 2 and 5 of the NeuralDB paper (arXiv 2507.18028). Sites are found by the
model's structure and shapes, never by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from neuraldb_faiss.errors import ModelError

# Down-projection of an FFN, seen from its block. A path counts only where its output has the hidden size,
# so a line here can do no harm to other architectures; `--ffn-module` serves what is not listed.
FFN_PATHS: tuple[str, ...] = (
    "mlp.down_proj",  # Llama, Mistral, Qwen2/3, SmolLM, Gemma, OLMo2, StableLM, Cohere, Phi-3
    "mlp.c_proj",  # GPT-2, GPT-Neo, GPT-BigCode
    "mlp.fc_out",  # GPT-J, CodeGen
    "mlp.dense_4h_to_h",  # GPT-NeoX, Falcon, BLOOM
    "mlp.fc2",  # Phi
    "fc2",  # OPT
    "ffn.down_proj",  # MPT
)


@dataclass(frozen=True, slots=True, eq=False)
class FFNSite:
    """One layer's down-projection.

    ``layer`` of ``n_layers`` (from 0); ``d1`` inputs (the key's length) and ``d2`` outputs (the residual's);
    ``module`` is the projection and ``block`` the decoder layer that holds it, with their dotted names in the
    model.
    """

    layer: int
    n_layers: int
    d1: int
    d2: int
    module_name: str
    block_name: str
    module: nn.Module
    block: nn.Module


def unwrap(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` wrapped, or the model itself: module names must not depend on it."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model (the text part of a multi-modal one), or None."""
    config = getattr(unwrap(model), "config", None)
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def model_type(model: nn.Module) -> str:
    """The architecture as its configuration calls it ("llama"), or else the class's name."""
    found = getattr(text_config(model), "model_type", None)
    return str(found) if found else type(unwrap(model)).__name__


def projection_shape(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear projection, or None for any other module.

    ``Conv1D`` (GPT-2) keeps its weight as [in, out], ``nn.Linear`` as [out, in]; quantised linears pack
    theirs, so the declared sizes are asked first.
    """
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    d_in, d_out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(d_in, int) and isinstance(d_out, int):
        return d_in, d_out
    return None


def layer_count(model: nn.Module, ffn_module: str | None = None) -> int:
    """Number of decoder layers; with ``ffn_module``, one more than the highest layer that pattern finds.

    Raises ModelError where no layers are found.
    """
    if ffn_module is not None:
        return max(_pattern_layers(unwrap(model), ffn_module)) + 1
    return len(_blocks(unwrap(model))[1])


def find_site(model: nn.Module, layer: int, ffn_module: str | None = None) -> FFNSite:
    """The down-projection of ``layer`` (from 0).

    ``ffn_module`` is its dotted name with one ``{}`` for the layer ("model.layers.{}.mlp.down_proj"), for
    models whose structure is not known. Raises ModelError: unknown layer, no FFN found, mixture of experts,
    or a module that is no linear projection.
    """
    model = unwrap(model)
    if ffn_module is not None:
        return _named_site(model, layer, ffn_module)
    list_name, blocks = _blocks(model)
    _check_layer(model, layer, len(blocks))
    block, block_name = blocks[layer], f"{list_name}.{layer}"
    path = _ffn_path(block, _hidden_size(model))
    if path is None:
        raise ModelError(_no_ffn(model, block, block_name))
    module = block.get_submodule(path)
    d1, d2 = projection_shape(module) or (0, 0)
    return FFNSite(layer, len(blocks), d1, d2, f"{block_name}.{path}", block_name, module, block)


def _check_layer(model: nn.Module, layer: int, n_layers: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        kind = model_type(model)
        raise ModelError(f"layer {layer!r} does not exist: this {kind} model has layers 0 to {n_layers - 1}")


def _hidden_size(model: nn.Module) -> int | None:
    size = getattr(text_config(model), "hidden_size", None)
    return size if isinstance(size, int) else None


def _ffn_path(block: nn.Module, hidden: int | None) -> str | None:
    for path in FFN_PATHS:
        try:
            shape = projection_shape(block.get_submodule(path))
        except AttributeError:
            continue
        if shape is not None and (hidden is None or shape[1] == hidden):
            return path
    return None


def _block_lists(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Lists that can be the decoder's layers: as long as the configuration says, with an FFN or experts in
    them."""
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    hidden = _hidden_size(model)
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) == 0:
            continue
        if isinstance(n_layers, int) and len(module) != n_layers:
            continue
        if any(_ffn_path(block, hidden) or _experts(block) for block in module):
            yield name, module


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = list(_block_lists(model))
    if len(lists) == 1:
        return lists[0]
    cure = 'name the module, as in --ffn-module "model.layers.{}.mlp.down_proj"'
    kind = model_type(model)
    if lists:
        names = ", ".join(name for name, _ in lists)
        raise ModelError(f"this {kind} model has several stacks of layers ({names}): {cure}")
    looked = ", ".join(FFN_PATHS)
    raise ModelError(f"no feed-forward network found in this {kind} model (looked for {looked}): {cure}")


def _experts(block: nn.Module) -> str | None:
    return next((name for name, _ in block.named_modules() if name.split(".")[-1] == "experts"), None)


def _no_ffn(model: nn.Module, block: nn.Module, block_name: str) -> str:
    kind = model_type(model)
    experts = _experts(block)
    if experts is not None:
        return (
            f"{block_name} of this {kind} model is a mixture of experts ({block_name}.{experts}), "
            "where a token has no single key: choose a dense layer, or name a projection that sees every "
            "token (such as a shared expert's) with --ffn-module"
        )
    looked = ", ".join(FFN_PATHS)
    return (
        f"{block_name} of this {kind} model has no feed-forward network (looked for {looked}): choose "
        'another layer, or name the module, as in --ffn-module "model.layers.{}.mlp.down_proj"'
    )


def _pattern_layers(model: nn.Module, pattern: str) -> dict[int, str]:
    """Layer number -> module name, for each module whose name fits the pattern."""
    if pattern.count("{}") != 1:
        raise ModelError(f"--ffn-module {pattern!r} needs exactly one {{}} where the layer's number goes")
    before, after = pattern.split("{}")
    fits = re.compile(re.escape(before) + r"(0|[1-9][0-9]*)" + re.escape(after))
    found = {}
    for name, _ in model.named_modules():
        match = fits.fullmatch(name)
        if match:
            found[int(match.group(1))] = name
    if not found:
        linear = [
            name for name, module in model.named_modules() if projection_shape(module) and ".0." in name
        ]
        known = f": the linear modules of layer 0 are {', '.join(linear[:12])}" if linear else ""
        raise ModelError(f"no module of this {model_type(model)} model is called {pattern!r}{known}")
    return found


def _named_site(model: nn.Module, layer: int, pattern: str) -> FFNSite:
    found = _pattern_layers(model, pattern)
    n_layers = max(found) + 1
    _check_layer(model, layer, n_layers)
    if layer not in found:
        having = ", ".join(str(number) for number in sorted(found))
        raise ModelError(f"layer {layer} has no module {pattern!r}; the layers that have it: {having}")
    name = found[layer]
    module = model.get_submodule(name)
    shape = projection_shape(module)
    if shape is None:
        raise ModelError(
            f"{name} is a {type(module).__name__}, not a linear projection: name the FFN's last one"
        )
    before, after = pattern.split("{}")
    block_name = f"{before}{layer}{after.split('.')[0]}"
    return FFNSite(layer, n_layers, *shape, name, block_name, module, model.get_submodule(block_name))
