"""Choice of the fastest forward strategy that matches full forward passes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models.sites import AttentionSite, FFNSite, input_device, text_config
from neuraldb_faiss.solver.batch import Batch
from neuraldb_faiss.solver.forward import selfcheck
from neuraldb_faiss.solver.forward.base import Forward, FullForward, PaddedForward
from neuraldb_faiss.solver.forward.packed import Heads, PackedForward

logger = logging.getLogger(__name__)

FULL = "full"
_PACKED = "packed "
_FAST = ("packed block", "packed ffn", "block", "ffn")  # fastest first: whether packed, and `FastForward`'s inject

_NO_GRADIENT = (
    "no true gradient comes back through this model above layer {layer} (some quantised layers have none): solve with "
    "the unquantised model, and attach the database to this one"
)

_proved: WeakKeyDictionary[Any, dict[tuple[str, bool, str | None], str]] = WeakKeyDictionary()


def is_packed(way: str) -> bool:
    """Whether this way computes no padding."""
    return way.startswith(_PACKED)


@dataclass(frozen=True, slots=True)
class Ways:
    """To run `model` with vectors at `site`, and with a second one at `attention` where it is given (PMET)."""

    model: Any
    site: FFNSite
    attention: AttentionSite | None
    heads: Heads

    def start(self, way: str, batch: Batch) -> Forward:
        """Run `batch` this way: "full", "block" or "ffn" (`FastForward`'s inject), or one of these two packed."""
        if way == FULL:
            return FullForward(self.model, self.site, batch, self.attention)
        inject = way.removeprefix(_PACKED)
        if is_packed(way):
            return PackedForward(self.model, self.site, batch, inject, self.heads, self.attention)
        return PaddedForward(self.model, self.site, batch, inject, self.attention)

    def fastest(self, sample: Batch, clamp: float) -> str:
        """The fastest way that agrees with plain passes on `sample` and random vectors of half of `clamp`; found once
        a model, site and attention, for it costs as much as solving a fact.

        Raises BuildError where gradients through the model are wrong.
        """
        known = _proved.setdefault(self.model, {})
        kind = getattr(text_config(self.model), "_attn_implementation", None)
        what = self.site.module_name, self.attention is not None, kind
        if what not in known:
            known[what] = self.prove(sample, clamp)
        return known[what]

    def prove(self, sample: Batch, clamp: float) -> str:
        """`fastest`, found anew."""
        model, layer = self.model, self.site.layer
        full = FullForward(model, self.site, sample, self.attention)
        generator = torch.Generator().manual_seed(0)
        r = torch.randn(*full.h_norm.shape, self.site.d2, generator=generator).to(input_device(model))
        r *= 0.5 * clamp * full.h_norm[..., None] / r.norm(dim=-1, keepdim=True)
        try:
            plain = selfcheck.measure(full, r)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            raise BuildError(_NO_GRADIENT.format(layer=layer)) from error
        if (
            selfcheck.is_quantised(model)
            and bool(plain.logits.isfinite().all())
            and not selfcheck.has_gradient(full, plain)
        ):
            raise BuildError(_NO_GRADIENT.format(layer=layer))
        reason = "its results differ from a plain forward pass"
        for way in _FAST:
            if self.attention is not None and not way.endswith("ffn"):
                continue
            try:
                if selfcheck.agrees(self.start(way, sample), plain, model.dtype):
                    return way
            except Exception as error:  # whatever an unknown architecture raises, the plain pass still serves it
                reason = f"{type(error).__name__}: {error}"
        logger.warning(
            "residuals at %s are solved with whole forward passes, several times slower: "
            "no fast pass serves this model (%s)",
            self.site.module_name,
            reason,
        )
        return FULL
