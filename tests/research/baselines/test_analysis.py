"""The kernel of a layer: ω of edited, paraphrased and other prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from helpers import weight_edits as plain
from helpers.tiny import tiny
from helpers.weight_edits import FACTS
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import Statistics, layer_kernel
from neuraldb_faiss.solver import generate_prefixes

Take = Callable[..., Statistics]


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_omega_is_k1_s_k(name: str, take: Take) -> None:
    model, tokenizer = tiny("gpt2")
    statistics, site = take(model, tokenizer, [1]), find_site(model, 1)
    more: dict[str, Any] = {"c0_weight": 3.0} if name == "memit" else {"null_threshold": 0.3, "l2": 0.5}
    kernel = layer_kernel(name, model, tokenizer, FACTS, layer=1, statistics=statistics, **more)
    keys = plain.keys(model, tokenizer, site, FACTS, generate_prefixes(model, tokenizer))
    c0 = statistics.moments(model, [site])[1].matrix
    if name == "memit":
        s = np.linalg.inv(keys.T @ keys + 3.0 * c0)
    else:
        u, values, _ = np.linalg.svd(c0)
        p = u[:, values < 0.3] @ u[:, values < 0.3].T
        s = p @ np.linalg.inv(keys.T @ keys @ p + 0.5 * np.eye(len(p)))
    probes = np.random.default_rng(0).standard_normal((7, site.d1))
    got = kernel.omega(torch.from_numpy(probes)).numpy()
    assert got.shape == (7, len(FACTS))
    np.testing.assert_allclose(got, probes @ (keys @ s).T, atol=1e-4 * np.abs(got).max())


def test_an_edited_key_finds_its_own_fact_first(take: Take) -> None:
    model, tokenizer = tiny("llama")
    kernel = layer_kernel("memit", model, tokenizer, FACTS, layer=1, statistics=take(model, tokenizer, [1]),
                          c0_weight=0.5)  # fmt: skip
    keys = plain.keys(model, tokenizer, find_site(model, 1), FACTS, generate_prefixes(model, tokenizer))
    omega = kernel.omega(torch.from_numpy(keys))
    assert omega.argmax(1).tolist() == list(range(len(FACTS)))


@pytest.mark.parametrize("name", ["rect", "rome", "ft"])
def test_what_is_no_linear_lookup_is_refused(name: str, take: Take) -> None:
    model, tokenizer = tiny("llama")
    with pytest.raises(BuildError, match=f"{name} is no linear lookup"):
        layer_kernel(name, model, tokenizer, FACTS, layer=1, statistics=take(model, tokenizer, [1]))
