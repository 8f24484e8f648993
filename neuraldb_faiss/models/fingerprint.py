"""Fingerprint of a loaded model: its shapes, and samples of the weights that make the keys.

A key depends on every weight at and below its layer, and on none above. So a model whose upper layers differ
may use the database (its keys are the same), and one whose lower layers differ may not. Samples are rounded
to bfloat16: the same model in float32, float16 or bfloat16, on any device, has (nearly) the same samples,
while another revision differs in most of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss.fingerprint import ADAPTER_MARK, Fingerprint
from neuraldb_faiss.models import adapters
from neuraldb_faiss.models.sites import FFNSite, model_type, text_config, unwrap

_PER_TENSOR = 32
_PER_MAIN_TENSOR = 256  # the embedding and the down-projection itself
_FEEDS = re.compile(r"emb|wte|wpe|project_in")  # in the names of what runs before the first block


def fingerprint(model: nn.Module, site: FFNSite) -> Fingerprint:
    """The fingerprint of ``model`` for a database at ``site``. Reads a few numbers of each weight
    (milliseconds)."""
    wrapped, model = model, unwrap(model)
    samples: dict[str, tuple[int, ...]] = {}
    for one, count in _sampled(wrapped, model, site):
        values = _sample(one, count)
        if values is not None:
            samples[_free(one.name, samples)] = values
    vocab_size = getattr(text_config(model), "vocab_size", None)
    return Fingerprint(
        model_type=model_type(model),
        n_layers=site.n_layers,
        d1=site.d1,
        d2=site.d2,
        vocab_size=int(vocab_size) if vocab_size is not None else 0,
        layer=site.layer,
        module_name=site.module_name,
        samples=tuple(sorted(samples.items())),
    )


def _sampled(wrapped: nn.Module, model: nn.Module, site: FFNSite) -> Iterator[tuple[adapters.Weight, int]]:
    """(weight, samples to take) for the embeddings and for the blocks up to the site's, and for the adapters there.

    wrapped: ``model`` as PEFT, where it is used, wrapped it.
    """
    blocks = _block_names(model, site)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    seen: dict[int, torch.Tensor] = {}  # adapters' tensors by their id: some are shared
    for part in adapters.parts(model):
        in_block = any(part.name == block or part.name.startswith(f"{block}.") for block in blocks)
        is_embedding = isinstance(part.module, nn.Embedding) and not _beside(part.name, site)
        if part.added:
            named = _FEEDS.search(part.name) and part.module is not head and not _beside(part.name, site)
            if in_block or is_embedding or named:
                new = [one for one in part.weights if id(one.tensor) not in seen]
                seen.update((id(one.tensor), one.tensor) for one in new)
                yield from ((one, 1 if one.name.startswith(adapters.SCALING) else _PER_TENSOR) for one in new)
        elif in_block or is_embedding:
            main = is_embedding or part.name == site.module_name
            yield from ((one, _PER_MAIN_TENSOR if main else _PER_TENSOR) for one in part.weights)
    if seen or adapters.has_virtual_tokens(wrapped):
        yield from ((one, _PER_TENSOR) for one in adapters.beside(wrapped, model) if id(one.tensor) not in seen)


def _sample(weight: adapters.Weight, count: int) -> tuple[int, ...] | None:
    """Its samples; of what an adapter adds () where they cannot be read, None for counters and indices."""
    found: torch.Tensor | None = weight.tensor
    if weight.tensor.is_meta and weight.holder is not None:
        found = _offloaded(weight.holder, weight.key)
    values = None if found is None else sample_weight(found, count)
    if values is None and weight.name.startswith(ADAPTER_MARK) and weight.tensor.is_floating_point():
        return ()
    return values


def _free(name: str, taken: Mapping[str, Any]) -> str:
    """The name, numbered where several active adapters have it."""
    number = 1
    while (found := name if number == 1 else f"{name}#{number}") in taken:
        number += 1
    return found


def _block_names(model: nn.Module, site: FFNSite) -> list[str]:
    stem = _stem(site)
    numbered = [f"{stem}{layer}" for layer in range(site.layer + 1)]
    names = {name for name, _ in model.named_modules()}
    return [name for name in numbered if name in names]


def _stem(site: FFNSite) -> str:
    """The block's name without the layer's number: "model.layers."."""
    return site.block_name.removesuffix(str(site.layer))


def _beside(module_name: str, site: FFNSite) -> bool:
    """Whether a module is in the stack of blocks (where only those up to the site's count)."""
    return module_name.startswith(_stem(site))


def _offloaded(module: nn.Module, name: str) -> torch.Tensor | None:
    """The weight that accelerate keeps elsewhere (``device_map`` with offloading), or None."""
    weights: Any = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    try:
        found = weights[name] if weights is not None else None
    except (KeyError, OSError):
        return None
    return found if isinstance(found, torch.Tensor) and not found.is_meta else None


def sample_weight(weight: torch.Tensor, count: int) -> tuple[int, ...] | None:
    """``count`` elements at places fixed by the shape, as bfloat16 bit patterns; None for quantised
    weights."""
    if not weight.is_floating_point() or weight.element_size() < 2 or weight.numel() == 0:
        return None
    if type(weight.detach()) is not torch.Tensor:  # a class of its own, as torchao's, whose elements are elsewhere
        return None
    # Fibonacci hashing spreads the places evenly and over all columns, in integers: the same on every
    # machine.
    weight = weight.reshape(1) if weight.ndim == 0 else weight
    size = weight.numel()
    places = [((i + 1) * 0x9E3779B97F4A7C15 % 2**64) * size >> 64 for i in range(count)]
    index = tuple(torch.from_numpy(axis).to(weight.device) for axis in np.unravel_index(places, weight.shape))
    rounded = weight.detach()[index].to("cpu", torch.float32).to(torch.bfloat16)
    return tuple(int(bits) & 0xFFFF for bits in rounded.view(torch.int16).tolist())
