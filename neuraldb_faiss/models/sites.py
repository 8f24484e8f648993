"""Edit sites: the down-projection of one layer's feed-forward network (FFN), found by architecture.

A key is what enters that projection (length d1, the intermediate size) and a residual is added to what leaves
it (length d2, the hidden size): eq. 2 and 5 of the NeuralDB paper (arXiv 2507.18028). Sites are found by the
model's structure and shapes, never by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from neuraldb_faiss.errors import ModelError

# Down-projection of an FFN, seen from its block. A path counts only where its output has the hidden size,
# so a line here can do no harm to other architectures; `--ffn-module` serves what is not listed.
FFN_PATHS: tuple[str, ...] = (
    "mlp.down_proj",  # Llama, Mistral, Qwen, SmolLM, Gemma, OLMo, StableLM, Cohere, Phi-3, Granite, GLM, EXAONE
    "mlp.c_proj",  # GPT-2, GPT-Neo, GPT-BigCode, Starcoder2
    "mlp.fc_out",  # GPT-J, CodeGen
    "mlp.dense_4h_to_h",  # GPT-NeoX, Falcon, BLOOM, Persimmon
    "mlp.fc2",  # Phi, nanochat
    "mlp.Wo",  # ModernBERT's decoder
    "fc2",  # OPT, XGLM, BioGPT
    "ffn.down_proj",  # MPT
    "feed_forward.down_proj",  # Llama 4's dense layers, Jamba's, Bamba, Falcon-H1
    "feed_forward.w2",  # LFM2
    "shared_mlp.output_linear",  # Granite 4
)

# Output projection of an attention, seen from its block, as above.
ATTENTION_PATHS: tuple[str, ...] = (
    "self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, OLMo, StableLM, Cohere, Phi-3, Granite, GLM, EXAONE
    "self_attn.out_proj",  # OPT, XGLM, BioGPT, LFM2
    "self_attn.dense",  # Phi, Persimmon
    "linear_attn.out_proj",  # Qwen 3.5
    "linear_attn.o_proj",  # OLMo hybrid
    "attn.c_proj",  # GPT-2, GPT-BigCode
    "attn.out_proj",  # GPT-J, CodeGen, MPT
    "attn.attention.out_proj",  # GPT-Neo
    "attn.Wo",  # ModernBERT's decoder
    "attention.dense",  # GPT-NeoX
    "self_attention.dense",  # Falcon, BLOOM
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


@dataclass(frozen=True, slots=True, eq=False)
class AttentionSite:
    """One layer's attention: its output projection with its dotted name in the model, and the block's child that
    is, or holds, the whole attention."""

    module_name: str
    module: nn.Module
    whole: nn.Module


def unwrap(model: nn.Module) -> nn.Module:
    """The model that ``torch.compile`` or PEFT wrapped, or the model itself: module names must not depend on it."""
    inner = getattr(model, "_orig_mod", model)
    base = getattr(inner, "get_base_model", None)  # PEFT's
    if callable(base):
        inner = base()
    return unwrap(inner) if isinstance(inner, nn.Module) and inner is not model else model


def input_device(model: nn.Module) -> torch.device:
    """Where the model wants its token ids; also where its weights are kept elsewhere (``device_map``)."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    device: torch.device = embedding.weight.device
    if device.type == "meta":
        device = torch.device(getattr(embedding._hf_hook, "execution_device", "cpu"))
    return device


def layer_device(model: nn.Module, layer: int, ffn_module: str | None) -> torch.device:
    """Where the layer runs that a database with these settings edits."""
    weight: Any = find_site(model, layer, ffn_module).module.weight
    device: torch.device = weight.device
    return input_device(unwrap(model)) if device.type == "meta" else device


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


def find_attention(model: nn.Module, site: FFNSite) -> AttentionSite:
    """The attention of the site's layer. Raises ModelError where there is none with an output of the hidden
    size."""
    path = _path(site.block, ATTENTION_PATHS, site.d2)
    if path is None:
        raise ModelError(
            f"{site.block_name} of this {model_type(model)} model has no attention that PMET's residual could be "
            f"solved with (looked for {', '.join(ATTENTION_PATHS)}): choose another layer, or --residual memit"
        )
    whole = site.block.get_submodule(path.split(".")[0])
    return AttentionSite(f"{site.block_name}.{path}", site.block.get_submodule(path), whole)


def _check_layer(model: nn.Module, layer: int, n_layers: int) -> None:
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_layers:
        kind = model_type(model)
        raise ModelError(f"layer {layer!r} does not exist: this {kind} model has layers 0 to {n_layers - 1}")


def _hidden_size(model: nn.Module) -> int | None:
    size = getattr(text_config(model), "hidden_size", None)
    return size if isinstance(size, int) else None


def _ffn_path(block: nn.Module, hidden: int | None) -> str | None:
    return None if _experts(block) else _path(block, FFN_PATHS, hidden)


def _path(block: nn.Module, paths: tuple[str, ...], hidden: int | None) -> str | None:
    """The first of `paths` that leads to a projection with `hidden` outputs."""
    for path in paths:
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
    if len(lists) > 1:  # an image's encoder beside the text's decoder, say
        lists = [one for one in lists if one[1] in _decoder_modules(model)] or lists
    if len(lists) == 1:
        return lists[0]
    cure = 'name the module, as in --ffn-module "model.layers.{}.mlp.down_proj"'
    kind = model_type(model)
    if lists:
        names = ", ".join(name for name, _ in lists)
        raise ModelError(f"this {kind} model has several stacks of layers ({names}): {cure}")
    looked = ", ".join(FFN_PATHS)
    raise ModelError(f"no feed-forward network found in this {kind} model (looked for {looked}): {cure}")


def _decoder_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of what transformers calls the model's decoder: the text part of a multi-modal one."""
    getter = getattr(model, "get_decoder", None)
    decoder = getter() if callable(getter) else None
    return list(decoder.modules()) if isinstance(decoder, nn.Module) else []


def _experts(block: nn.Module) -> str | None:
    return next((name for name, _ in block.named_modules() if name.split(".")[-1] == "experts"), None)


def _no_ffn(model: nn.Module, block: nn.Module, block_name: str) -> str:
    kind = model_type(model)
    experts = _experts(block)
    looked = ", ".join(FFN_PATHS)
    stem = block_name.rpartition(".")[0]
    if experts is not None:
        return (
            f"{block_name} of this {kind} model is a mixture of experts ({block_name}.{experts}), where a token has "
            f"no single key (looked for {looked}): choose a dense layer, or name a projection that every token "
            f'passes, as in --ffn-module "{stem}.{{}}.{_other(model, block) or "mlp.shared_expert.down_proj"}"'
        )
    return (
        f"{block_name} of this {kind} model has no feed-forward network (looked for {looked}): choose another "
        f'layer, or name the module, as in --ffn-module "{stem}.{{}}.{_other(model, block) or "mlp.down_proj"}"'
    )


def _other(model: nn.Module, block: nn.Module) -> str | None:
    """A projection of the block to the hidden size that is not its attention's, to be proposed."""
    attention = {block.get_submodule(path.split(".")[0]) for path in ATTENTION_PATHS if _has(block, path)}
    inside = {module for whole in attention for module in whole.modules()}
    for name, module in block.named_modules():
        shape = projection_shape(module)
        if shape is not None and shape[1] == _hidden_size(model) and module not in inside:
            return name
    return None


def _has(block: nn.Module, path: str) -> bool:
    try:
        return projection_shape(block.get_submodule(path)) is not None
    except AttributeError:
        return False


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
        linear = [name for name, module in model.named_modules() if projection_shape(module) and ".0." in name]
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
        raise ModelError(f"{name} is a {type(module).__name__}, not a linear projection: name the FFN's last one")
    before, after = pattern.split("{}")
    block_name = f"{before}{layer}{after.split('.')[0]}"
    return FFNSite(layer, n_layers, *shape, name, block_name, module, model.get_submodule(block_name))
