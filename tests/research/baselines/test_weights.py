"""Edits are made in copies: inside they act as W + Δ, afterwards every byte is what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.tiny import tiny
from helpers.weight_edits import matrix
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines.weights import copied


def state(model: nn.Module) -> dict[str, bytes]:
    return {name: value.clone().contiguous().view(torch.uint8).numpy().tobytes() for name, value in
            model.state_dict().items()}  # fmt: skip


def random_delta(site: Any, seed: int = 0) -> torch.Tensor:
    return torch.randn(site.d2, site.d1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 0.1


def test_an_edit_acts_as_w_plus_delta_and_goes_away(tiny_shape: Any) -> None:
    model, _ = tiny_shape
    sites = [find_site(model, 1), find_site(model, 2)]
    before, places = state(model), [site.module.weight.data_ptr() for site in sites]
    plain = matrix(sites[0].module)
    keys = torch.randn(5, sites[0].d1)
    with torch.no_grad(), copied(sites) as weights:
        values = sites[0].module(keys)
        delta = random_delta(sites[0])
        weights.add(1, delta)
        wanted = values + keys @ delta.float().T
        torch.testing.assert_close(sites[0].module(keys), wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(matrix(sites[0].module), plain + delta.numpy(), atol=1e-6)
        np.testing.assert_allclose(weights.delta(1).numpy(), delta.numpy(), atol=1e-6)
        assert not weights.delta(2).any()
        assert state(model) != before
    assert state(model) == before
    assert [site.module.weight.data_ptr() for site in sites] == places  # the very memory, never written


def test_an_exception_restores_too(tiny_shape: Any) -> None:
    model, _ = tiny_shape
    site = find_site(model, 1)
    before = state(model)
    with pytest.raises(ZeroDivisionError), copied([site]) as weights:
        weights.add(1, random_delta(site))
        1 / 0  # noqa: B018
    assert state(model) == before


def test_small_edits_of_a_half_precision_model_add_up() -> None:
    model, _ = tiny("gpt2")
    model = model.to(torch.bfloat16)
    site = find_site(model, 1)
    before = state(model)
    plain = matrix(site.module)
    step = np.abs(plain).max() * 2.0**-12  # far below bfloat16's rounding of most entries
    with copied([site]) as weights:
        for _ in range(256):
            weights.add(1, torch.full((site.d2, site.d1), step))
        assert site.module.weight.dtype == torch.bfloat16
        moved = matrix(site.module) - plain
    np.testing.assert_allclose(moved.mean(), 256 * step, rtol=0.01)
    assert state(model) == before


def test_edits_nest() -> None:
    model, _ = tiny("llama")
    site = find_site(model, 1)
    with copied([site]) as outer:
        outer.add(1, random_delta(site))
        first = state(model)
        with copied([site]) as inner:
            inner.add(1, random_delta(site, 1))
            np.testing.assert_allclose(inner.delta(1).numpy(), random_delta(site, 1).numpy(), atol=1e-6)
        assert state(model) == first


def test_put_takes_the_matrix_as_it_is() -> None:
    model, _ = tiny("gpt2")
    site = find_site(model, 0)
    wanted = random_delta(site)
    with copied([site]) as weights:
        weights.put(0, wanted)
        np.testing.assert_array_equal(matrix(site.module), wanted.float().double().numpy())
        wanted += 1  # the caller's own
        assert not np.allclose(matrix(site.module), wanted.numpy())


@pytest.mark.parametrize("how", ["quantised", "offloaded"])
def test_weights_that_cannot_be_edited_are_refused(how: str) -> None:
    model, _ = tiny("llama")
    site = find_site(model, 1)
    if how == "quantised":
        site.module.weight = nn.Parameter(torch.zeros(site.d2, site.d1, dtype=torch.int8), requires_grad=False)
    else:
        site.module.to("meta")
    with pytest.raises(ModelError, match=f"layers.1.mlp.down_proj are {how} and cannot be edited: load"):
        with copied([site]):
            pass
