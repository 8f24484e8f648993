"""PMET's residual (arXiv 2308.08742): a second vector at the attention's output takes part, and is not kept.

One vector is added to the FFN's output and one to the attention's output of the same layer, both at the
subject's last token, and both are optimised. The attention's takes up what no FFN should learn; only the FFN's
is the residual. Each is bounded, and decays, by the length of its own sublayer's output.

The rules here are the reference code's: a run may end before its loss is small, and a fact that is said
already weighs less against what must not change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuraldb_faiss.config import ResidualConfig
from neuraldb_faiss.models import AttentionSite, EditDefaults, FFNSite, find_attention
from neuraldb_faiss.models.defaults import Shape, model_shape
from neuraldb_faiss.solver.objectives.base import Evaluation
from neuraldb_faiss.solver.objectives.memit import Memit

_SAID_SCALE = 0.1
_KL_END = 0.01

# What PMET has otherwise: its reference code's for GPT-J 6B (arXiv 2308.08742), and a model's own where that does
# not do. SmolLM2's FFN gives at layer 3 a vector a quarter as long as the layer's, so the bound must be wider.
_SETTINGS: dict[str, Any] = {"steps": 30, "lr": 0.2, "kl_factor": 1.0}
_OWN: dict[Shape | None, dict[str, Any]] = {
    ("llama", 576, 30, 1536): {"lr": 0.5, "kl_factor": 0.0625, "clamp": 4.0},
}


class Pmet(Memit):
    """Equation 21 with two vectors; only the FFN's is the residual."""

    def second_site(self, model: Any, site: FFNSite) -> AttentionSite:
        return find_attention(model, site)

    def defaults(self, model: Any, ffn_module: str | None = None) -> EditDefaults:
        own = _OWN.get(model_shape(model, ffn_module), {})
        return replace(super().defaults(model, ffn_module), **{**_SETTINGS, **own})

    def ends(self, now: Evaluation, config: ResidualConfig) -> Tensor:
        return super().ends(now, config) | may_end(now)

    def next_nll_scale(self, now: Evaluation) -> Tensor:
        return next_nll_scale(now)


def next_nll_scale(now: Evaluation) -> Tensor:
    """float32 [G]: the factor on the next step's NLL term, 0.1 where all rows say the target already."""
    return torch.where(now.hit, _SAID_SCALE, 1.0)


def may_end(now: Evaluation) -> Tensor:
    """bool [G]: all rows say the target, and what the subject is has hardly changed (KL <= 0.01)."""
    return now.hit & (now.kl <= _KL_END)
