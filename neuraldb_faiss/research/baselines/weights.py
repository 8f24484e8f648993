"""Edits of weight matrices that leave the original bytes alone and go away at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import FFNSite


class Weights:
    """Down-projections of some layers, each seen as W [d2, d1] whichever way its module keeps it.

    Sums are kept in at least float32 (the "master"), so that many small edits of a half-precision model do not
    drown in its rounding; the model sees the master rounded to its own type.
    """

    def __init__(self, sites: Sequence[FFNSite]) -> None:
        self._parameters = {site.layer: _parameter(site) for site in sites}
        self._turned = {site.layer: isinstance(site.module, Conv1D) for site in sites}
        self._original = {layer: weight.data for layer, weight in self._parameters.items()}
        self._master: dict[int, Tensor] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self._parameters)

    def device(self, layer: int) -> torch.device:
        return self._parameters[layer].device

    def current(self, layer: int) -> Tensor:
        """The matrix as it is edited by now: float32 (or the model's own, if wider) [d2, d1]. Do not write to it."""
        return self._seen(layer, self._master.get(layer, self._wide(layer)))

    def put(self, layer: int, matrix: Tensor) -> None:
        """Let the layer's matrix be `matrix` [d2, d1], of any floating type."""
        weight = self._parameters[layer]
        wide = self._wide_type(layer)
        master = self._seen(layer, matrix).to(weight.device, wide, copy=True, memory_format=torch.contiguous_format)
        self._master[layer] = master
        weight.data = master.to(weight.dtype)

    def add(self, layer: int, delta: Tensor) -> None:
        """Add `delta` [d2, d1] to the layer's matrix."""
        current = self.current(layer)
        self.put(layer, current + delta.to(current.dtype).to(current.device))

    def delta(self, layer: int) -> Tensor:
        """What the model's matrix differs by from its original one, rounding included: float32 [d2, d1]."""
        return self._seen(layer, self._parameters[layer].data.float() - self._original[layer].float())

    def restore(self) -> None:
        """Give every module its original bytes back, on the device where its weight is now."""
        for layer, weight in self._parameters.items():
            weight.data = self._original[layer].to(weight.device)
        self._master.clear()

    def _seen(self, layer: int, matrix: Tensor) -> Tensor:
        return matrix.T if self._turned[layer] else matrix  # its own inverse

    def _wide_type(self, layer: int) -> torch.dtype:
        return torch.promote_types(self._original[layer].dtype, torch.float32)

    def _wide(self, layer: int) -> Tensor:
        return self._parameters[layer].data.to(self._wide_type(layer))


@contextmanager
def copied(sites: Sequence[FFNSite]) -> Iterator[Weights]:
    """Edit the down-projections of `sites` inside; their original bytes come back whatever is raised.

    Copy-on-write: the original tensors are set aside, never written, and put back, so the model is bit for bit
    what it was. Raises ModelError for weights that are quantised or kept elsewhere (offloaded).
    """
    weights = Weights(sites)
    try:
        yield weights
    finally:
        weights.restore()


def _parameter(site: FFNSite) -> nn.Parameter:
    weight = getattr(site.module, "weight", None)
    cure = "load the whole model unquantised (--dtype float32 or bfloat16) on one device"
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point() or weight.element_size() < 2:
        raise ModelError(f"the weights of {site.module_name} are quantised and cannot be edited: {cure}")
    if weight.is_meta:
        raise ModelError(f"the weights of {site.module_name} are offloaded and cannot be edited: {cure}")
    return weight
