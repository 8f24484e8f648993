"""ROME (arXiv 2202.05262): one rank-one edit a fact, one fact at a time, at one layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import encode
from neuraldb_faiss.research.baselines.kernels import RankOne
from neuraldb_faiss.research.baselines.reading import outputs_at
from neuraldb_faiss.research.baselines.residuals import UNEDITED, Residuals, after
from neuraldb_faiss.research.baselines.statistics import Moment
from neuraldb_faiss.research.baselines.weights import Weights
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.prefixes import contexts


def write(editor: Editor, weights: Weights, moment: Moment, facts: Sequence[Fact], residuals: Residuals) -> None:
    """Write `facts` one after the other, each solved on the model that holds those before it.

    The update is Δ = r (C0⁻¹k)ᵀ / (kᵀC0⁻¹k), with k the fact's averaged key (eq. 20), so that Δk = r. `moment` is
    that of the editor's layer.
    """
    layer, state = editor.site.layer, after(UNEDITED, "rome", moment.sha256)
    space = RankOne(moment.on(weights.device(layer)))
    for fact in facts:
        residual = residuals.of([fact], state, lambda group: [_solve(editor, group[0])])
        keys = torch.from_numpy(editor.make_keys([fact]).keys)
        weights.add(layer, space.kernel(keys).delta(torch.from_numpy(residual)))
        state = after(state, fact.text, fact.target)


def _solve(editor: Editor, fact: Fact) -> tuple[np.ndarray, float]:
    """ROME's objective is eq. 21 with the FFN's own output in the place of h_init, in the decay and in the clamp."""
    ratio = _norm_ratio(editor, fact)
    config = replace(
        editor.config,
        clamp=editor.config.clamp * ratio,
        weight_decay=editor.config.weight_decay / ratio**2,
    )
    (solved,) = replace(editor, config=config).make_residuals([[fact]])
    return solved.residual, float(solved.loss or 0.0)


def _norm_ratio(editor: Editor, fact: Fact) -> float:
    """‖FFN output‖ / ‖layer output‖ at the subject's last token: of the raw prompt, or where that is position 0
    the mean over the prefixed ones (as eq. 21 takes h_init)."""
    places = contexts(fact, editor.prefixes)
    at_start = encode(editor.tokenizer, *places[0]).last == 0 and len(places) > 1
    chosen = places[1:] if at_start else places[:1]
    ffn, block = (
        float(outputs_at(editor.model, editor.tokenizer, module, chosen).mean(0).norm())
        for module in (editor.site.module, editor.site.block)
    )
    return ffn / block
