"""First guesses of residuals: the ridge regression, and the solver that begins at them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.solver import ResidualConfig, sampled, solve_residuals
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.first_guess import RIDGE, FirstGuess, Ridge, Solutions
from neuraldb_faiss.solver.optimizer import Normalised
from neuraldb_faiss.solver.residuals import Solver

CONFIG = ResidualConfig(
    steps=24, lr=0.6, weight_decay=0.0, clamp=20.0, kl_factor=0.0, stop_loss=0.0, max_steps=24, optimizer="sampled"
)
PREFIXES = ("The city of", "Because")
FACTS = [
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome"),
    Fact("Marie Curie", "The city {} was born in is", "Berlin"),
]


def test_ridge_is_the_least_squares_solution_of_the_penalised_problem() -> None:
    generator = np.random.default_rng(0)
    features, residuals = generator.standard_normal((30, 7)) + 3, generator.standard_normal((30, 5)) * 40
    ridge = Ridge.fit(features.astype(np.float32), residuals.astype(np.float32))

    x = features - features.mean(0)
    x /= np.linalg.norm(x, axis=1)[:, None]
    y = residuals / np.linalg.norm(residuals, axis=1)[:, None]
    rows = np.vstack([x, np.sqrt(RIDGE) * np.eye(7)])
    weights = np.linalg.lstsq(rows, np.vstack([y - y.mean(0), np.zeros((7, 5))]))[0]
    new = generator.standard_normal((4, 7)) + 3
    at = new - features.mean(0)
    wanted = at / np.linalg.norm(at, axis=1)[:, None] @ weights + y.mean(0)
    wanted *= np.linalg.norm(residuals, axis=1).mean() / np.linalg.norm(wanted, axis=1)[:, None]

    found = ridge(new.astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_targets_of_a_kind_are_guessed_alike() -> None:
    model, tokenizer = tiny("llama")
    names = ("Rome", "Berlin", "Madrid", "Paris")
    residuals = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    targets = tuple((f" {names[i % 4]}",) for i in range(40))
    guess = FirstGuess(model, tokenizer, Solutions(targets, np.tile(residuals, (10, 1))))
    found = guess([(" Rome",), (" Berlin",), (" Rome", " Berlin")])
    cosines = _unit(found) @ _unit(residuals).T
    assert cosines[0].argmax() == 0 and cosines[1].argmax() == 1
    assert set(cosines[2].argsort()[-2:]) == {0, 1}  # two facts of one entry


def test_a_solution_is_a_better_guess_than_zeros_and_guesses_are_looked_at_sooner() -> None:
    model, tokenizer = tiny("llama")
    site, groups = find_site(model, 1), [[fact] for fact in FACTS]
    solved = solve_residuals(model, tokenizer, site, groups, PREFIXES, CONFIG)
    solver = Solver(model, tokenizer, site, dataclasses.replace(CONFIG, stop_loss=100.0))
    guess = np.stack([one.residual for one in solved])
    cold, zeros, warm = (solver.solve(groups, PREFIXES, one) for one in (None, 0 * guess, guess))
    assert all(one.loss < other.loss for one, other in zip(warm, zeros, strict=True))
    assert {one.steps for one in warm} == {sampled.GUESSED_EARLIEST}
    assert {one.steps for one in cold} == {sampled.EARLIEST}


def test_no_guess_is_longer_than_the_clamp() -> None:
    model, tokenizer = tiny("llama")
    site, groups = find_site(model, 1), [[fact] for fact in FACTS]
    config = dataclasses.replace(CONFIG, clamp=0.75, steps=8, max_steps=8)
    cold = solve_residuals(model, tokenizer, site, groups, PREFIXES, config)  # its length is the bound
    guesses = 1000 * np.stack([one.residual for one in cold])
    warm = Solver(model, tokenizer, site, config).solve(groups, PREFIXES, guesses)
    for one, other in zip(warm, cold, strict=True):
        assert np.linalg.norm(one.residual) <= 1.001 * np.linalg.norm(other.residual)


def test_from_a_guess_two_contexts_are_enough() -> None:
    model, tokenizer = tiny("llama")
    site, groups = find_site(model, 1), [[fact] for fact in FACTS]
    solver = Solver(model, tokenizer, site, dataclasses.replace(CONFIG, steps=4, max_steps=4))
    guesses = np.random.default_rng(4).standard_normal((2, site.d2)).astype(np.float32)
    more = (*PREFIXES, "I was born in Spain")
    for one, other in zip(solver.solve(groups, PREFIXES, guesses), solver.solve(groups, more, guesses), strict=True):
        np.testing.assert_allclose(one.residual, other.residual, rtol=1e-4, atol=1e-5)
    cold, colder = solver.solve(groups, PREFIXES), solver.solve(groups, more)
    assert not np.allclose(cold[0].residual, colder[0].residual, rtol=1e-4, atol=1e-5)


def test_adam_does_not_begin_at_a_guess() -> None:
    model, tokenizer = tiny("llama")
    site, groups = find_site(model, 1), [[fact] for fact in FACTS]
    config = dataclasses.replace(CONFIG, optimizer="adam", steps=2, max_steps=0)
    cold = solve_residuals(model, tokenizer, site, groups, PREFIXES, config)
    guesses = np.ones((2, site.d2), np.float32)
    warm = Solver(model, tokenizer, site, config).solve(groups, PREFIXES, guesses)
    for one, other in zip(cold, warm, strict=True):
        np.testing.assert_array_equal(one.residual, other.residual)


def test_steps_go_on_from_the_length_they_have_by_then() -> None:
    torch.manual_seed(0)
    grads, norm = torch.randn(5, 1, 1, 8), torch.ones(1, 1)
    begun = Normalised(grads[0], 0.6)
    r = torch.zeros_like(grads[0])
    lengths = []
    for _ in range(3):
        after = begun.update(r, grads[0], norm)
        lengths.append(float((after - r).norm()))
        r = after
    later = Normalised(grads[0], 0.6, 2)
    assert float(later.update(torch.zeros_like(r), grads[0], norm).norm()) == pytest.approx(lengths[2])


def test_an_editor_guesses_from_what_it_knows() -> None:
    model, tokenizer = tiny("llama")
    editor = Editor.new(model, tokenizer, layer=1, guard="none", stop_loss=0.0, steps=1, max_steps=0)
    residuals = np.random.default_rng(2).standard_normal((8, editor.site.d2)).astype(np.float32)
    known = Solutions(tuple((f" {name}",) for name in ("Rome", "Berlin") * 4), residuals)
    knowing = editor.knowing(known)
    assert knowing.knowing(known) is knowing and knowing.digest() == editor.digest()
    cold, warm = (one.make_residuals([[FACTS[0]]])[0].residual for one in (editor, knowing))
    assert not np.allclose(cold, warm)
    at_start = [one.make_residuals([[FACTS[0]]], prefixed=False)[0].residual for one in (editor, knowing)]
    np.testing.assert_array_equal(*at_start)  # another length and direction: entries at a text's beginning are cold


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_what_is_kept_is_what_the_model_says_without_the_guess() -> None:
    model, tokenizer = tiny("llama")
    site, groups = find_site(model, 1), [[fact] for fact in FACTS]
    guesses = 30 * np.random.default_rng(3).standard_normal((2, site.d2)).astype(np.float32)
    still = dataclasses.replace(CONFIG, lr=1e-9, stop_loss=1e9)
    without, kept = (
        Solver(model, tokenizer, site, one).solve(groups, PREFIXES, guesses)
        for one in (still, dataclasses.replace(still, kl_factor=1.0))
    )
    assert all(one.loss > other.loss + 0.01 for one, other in zip(kept, without, strict=True))
