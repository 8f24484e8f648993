"""The kernels against their formulas written out densely, against cases solved by hand, and against what must hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import kernels
from neuraldb_faiss.research.baselines.kernels import Kernel, NullSpace, RankOne
from neuraldb_faiss.research.baselines.weights import copied

D1, D2, M = 24, 10, 5


def drawn(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def moment(seed: int = 9, rank: int = 200, scale: float = 1.0) -> np.ndarray:
    """C0 of `rank` random keys."""
    keys = drawn(D1, rank, seed=seed) * scale
    return keys @ keys.T / rank


KEYS, RESIDUALS = drawn(M, D1, seed=1), drawn(M, D2, seed=2)
K1, R1 = KEYS.T, RESIDUALS.T
t = torch.from_numpy


def test_memit_by_hand() -> None:
    # C0 = 1, λ = 1, k = (1, 0): (k kᵀ + 1)⁻¹ = diag(1/2, 1), so Δ = r kᵀ diag(1/2, 1) = ((1, 0), (2, 0)) for r = (2, 4)
    kernel = kernels.memit(torch.tensor([[1.0, 0.0]]), torch.eye(2, dtype=torch.float64), 1.0)
    np.testing.assert_allclose(kernel.delta(torch.tensor([[2.0, 4.0]])).numpy(), [[1, 0], [2, 0]], rtol=1e-12)
    np.testing.assert_allclose(kernel.omega(torch.tensor([[3.0, 7.0]])).numpy(), [[1.5]], rtol=1e-12)


def test_memit_is_its_formula() -> None:
    c0 = moment()
    delta = kernels.memit(t(KEYS), t(c0), 7.0).delta(t(RESIDUALS)).numpy()
    np.testing.assert_allclose(delta, R1 @ K1.T @ np.linalg.inv(K1 @ K1.T + 7.0 * c0), rtol=1e-8, atol=1e-12)


def test_float32_keys_are_solved_in_float64() -> None:
    delta = kernels.memit(t(KEYS).float(), t(moment()), 7.0).delta(t(RESIDUALS).float())
    assert delta.dtype == torch.float64


def test_rome_by_hand() -> None:
    # C0 = diag(1, 4), k = (1, 2): C0⁻¹k = (1, 1/2), kᵀC0⁻¹k = 2, so Δ = r (1/2, 1/4)
    c0 = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    delta = RankOne(c0).kernel(torch.tensor([[1.0, 2.0]])).delta(torch.tensor([[4.0]]))
    np.testing.assert_allclose(delta.numpy(), [[2, 1]], rtol=1e-12)


def test_rome_gives_its_fact_the_whole_residual() -> None:
    kernel = RankOne(t(moment())).kernel(t(KEYS))
    np.testing.assert_allclose(np.diag(kernel.omega(t(KEYS)).numpy()), np.ones(M), rtol=1e-10)


@pytest.mark.parametrize("weight", [0.1, 10.0, 1000.0])
def test_memit_of_one_fact_is_rome_scaled(weight: float) -> None:
    c0, key, residual = moment(), KEYS[:1], RESIDUALS[:1]
    q = float(key[0] @ np.linalg.inv(c0) @ key[0])
    memit = kernels.memit(t(key), t(c0), weight).delta(t(residual)).numpy()
    rome = RankOne(t(c0)).kernel(t(key)).delta(t(residual)).numpy()
    np.testing.assert_allclose(memit, rome * q / (weight + q), rtol=1e-9)


def projection(c0: np.ndarray, threshold: float) -> np.ndarray:
    """P as the reference code makes it: from the singular vectors below the threshold."""
    u, s, _ = np.linalg.svd(c0)
    small = u[:, s < threshold]
    return small @ small.T


def test_alphaedit_is_the_reference_formula() -> None:
    c0 = moment(scale=0.1) + 0.0  # singular values on both sides of the threshold
    p = projection(c0, 0.01)
    assert 0 < round(np.trace(p)) < D1
    earlier = drawn(3, D1, seed=4)
    space = NullSpace(t(c0), 0.01, 10.0)
    np.testing.assert_allclose((space.basis @ space.basis.T).numpy(), p, atol=1e-10)
    first = space.kernel(t(KEYS)).delta(t(RESIDUALS)).numpy()
    inverse = np.linalg.inv(K1 @ K1.T @ p + 10.0 * np.eye(D1))
    np.testing.assert_allclose(first, R1 @ K1.T @ p @ inverse, atol=1e-10)  # eq. 10, one batch
    space.remember(t(earlier))
    then = space.kernel(t(KEYS)).delta(t(RESIDUALS)).numpy()
    inverse = np.linalg.inv(earlier.T @ earlier @ p + K1 @ K1.T @ p + 10.0 * np.eye(D1))
    np.testing.assert_allclose(then, R1 @ K1.T @ p @ inverse, atol=1e-10)
    assert np.abs(then - first).max() > 1e-3


def test_alphaedit_annihilates_preserved_keys() -> None:
    preserved = drawn(8, D1, seed=3)  # K0 of rank 8 in 24 dimensions
    c0 = preserved.T @ preserved / len(preserved)
    kernel = NullSpace(t(c0), 2e-2, 1.0).kernel(t(KEYS))
    delta = kernel.delta(t(RESIDUALS)).numpy()
    assert np.abs(delta @ preserved.T).max() < 1e-9
    assert np.abs(delta @ K1).max() > 0.1  # and yet it edits
    assert np.abs(kernels.memit(t(KEYS), t(moment()), 1.0).delta(t(RESIDUALS)).numpy() @ preserved.T).max() > 0.01


def test_alphaedit_spares_earlier_keys() -> None:
    space = NullSpace(t(moment()), 100.0, 1e-6)  # all of space is free
    earlier = drawn(6, D1, seed=5)
    space.remember(t(earlier))
    delta = space.kernel(t(KEYS)).delta(t(RESIDUALS)).numpy()
    np.testing.assert_allclose(delta @ K1, R1, atol=1e-4)
    np.testing.assert_allclose(delta @ earlier.T, 0, atol=1e-4)


def test_no_free_direction_is_an_error() -> None:
    with pytest.raises(BuildError, match="least singular value of C0 is .* null_threshold 1e-06"):
        NullSpace(t(moment()), 1e-6, 10.0)


@pytest.mark.parametrize("kind", ["memit", "rome"])
def test_too_little_text_is_an_error(kind: str) -> None:
    thin = t(moment(rank=6))
    with pytest.raises(BuildError, match="singular.*too little text"):
        kernels.memit(t(KEYS), thin, 5.0) if kind == "memit" else RankOne(thin).kernel(t(KEYS))


def test_rect_by_hand() -> None:
    # |ΔW / W| = ((2, 0.5), (0.1, inf)): of four entries half are kept, the 2 and the one over zero
    delta, weight = torch.tensor([[2.0, 1.0], [-0.3, 0.01]]), torch.tensor([[-1.0, 2.0], [3.0, 0.0]])
    assert torch.equal(kernels.rect(delta, weight, 0.5), torch.tensor([[2.0, 0.0], [0.0, 0.01]]))


@pytest.mark.parametrize("keep", [0.4, 0.05, 1.0])
def test_rect_keeps_its_share(keep: float) -> None:
    delta, weight = t(drawn(40, 50, seed=6)), t(drawn(40, 50, seed=7))
    kept = kernels.rect(delta, weight, keep)
    assert int((kept != 0).sum()) == round(keep * 2000)
    mask = kept != 0
    assert torch.equal(kept[mask], delta[mask])
    change = (delta / weight).abs()
    assert mask.all() or float(change[mask].min()) >= float(change[~mask].max())


@pytest.mark.parametrize("method", ["memit", "alphaedit", "rome"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_edited_module_gives_v_plus_the_weighted_residuals(kind: str, method: str) -> None:
    """(W + Δ) k = v + R1 ω with ω = K1ᵀ S k (eqs. 6-10), in the model's own float32."""
    model, _ = tiny(kind)
    site = find_site(model, 1)
    keys, residuals = t(drawn(6, site.d1, seed=11)), t(drawn(6, site.d2, seed=12))
    text = t(drawn(400, site.d1, seed=13))
    c0 = text.T @ text / len(text)
    made: dict[str, Kernel] = {
        "memit": kernels.memit(keys, c0, 50.0),
        "alphaedit": NullSpace(c0, 1.0, 10.0).kernel(keys),
        "rome": RankOne(c0).kernel(keys[:1]),
    }
    kernel = made[method]
    residuals = residuals[: len(kernel.rows)]
    probes = torch.cat([keys, t(drawn(20, site.d1, seed=14))]).float()
    with torch.no_grad(), copied([site]) as weights:
        values = site.module(probes)
        weights.add(1, kernel.delta(residuals))
        got = site.module(probes)
    wanted = values.double() + kernel.omega(probes) @ residuals
    assert float((got - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())
    assert float((got - values).abs().max()) > 0.01
