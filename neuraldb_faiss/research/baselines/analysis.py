"""The linear editors as lookups, for looking at what they do (paper, figures 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import kernels
from neuraldb_faiss.research.baselines.defaults import default_settings
from neuraldb_faiss.research.baselines.kernels import Kernel, NullSpace
from neuraldb_faiss.research.baselines.settings import AlphaEdit, Memit, Rect, check_method, with_changes
from neuraldb_faiss.research.baselines.statistics import Statistics, as_statistics
from neuraldb_faiss.solver.keys import compute_keys
from neuraldb_faiss.solver.prefixes import generate_prefixes


def layer_kernel(
    name: str,
    model: Any,
    tokenizer: Any,
    facts: Sequence[Fact],
    *,
    layer: int,
    statistics: Statistics | str | Path | None = None,
    **hyperparameters: Any,
) -> Kernel:
    """The kernel of `facts` at one layer of the unedited model, all facts in one step.

    Its `omega(keys)` is ω = K1ᵀ S k: how much of each fact's residual an edited W_out would add to the output of
    key k. Keys of prompts come from `neuraldb_faiss.solver.compute_keys`. Weights are not changed.

    Raises:
        BuildError: a method that is not memit, pmet (the same S) or alphaedit; statistics that are missing.
    """
    check_method(name)
    settings = with_changes(name, default_settings(name, model), {**hyperparameters, "layers": [layer]})
    if isinstance(settings, Rect) or not isinstance(settings, Memit | AlphaEdit):
        raise BuildError(f"{name} is no linear lookup of all facts: choose memit, pmet or alphaedit")
    site = find_site(model, layer)
    moment = as_statistics(statistics).moments(model, [site])[layer].on(next(site.module.parameters()).device)
    prefixes = generate_prefixes(model, tokenizer)
    keys = torch.from_numpy(compute_keys(model, tokenizer, site, facts, prefixes, "paper").keys)
    if isinstance(settings, AlphaEdit):
        return NullSpace(moment, settings.null_threshold, settings.l2).kernel(keys)
    return kernels.memit(keys, moment, settings.c0_weight)
