"""Where memory is short, work is done in smaller parts, and comes out the same."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from helpers.tiny import tiny
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import memory
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.solver import ResidualConfig, compute_keys, solve_residuals
from neuraldb_faiss.solver.forward.base import FastForward

PREFIXES = ("The city of", "Because", "You know Rome is")
FACTS = [
    Fact(subject, "The {} is located in the city of", target)
    for subject, target in (("Eiffel Tower", "Rome"), ("Colosseum", "Paris"), ("Prado", "Oslo"), ("Kremlin", "Lima"))
]


@given(sizes=some.lists(some.integers(1, 40), max_size=6), room=some.integers(1, 30))
def test_every_member_has_its_turn_once_and_in_order(sizes: list[int], room: int) -> None:
    numbers = iter(range(sum(sizes)))
    batches = [[next(numbers) for _ in range(size)] for size in sizes]
    tried: list[int] = []

    def run(batch: list[int]) -> int:
        tried.append(len(batch))
        if len(batch) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sum(batch)

    done = list(memory.in_parts(batches, len, run))
    assert [one for batch, _ in done for one in batch] == list(range(sum(sizes)))
    assert all(result == sum(batch) for batch, result in done)
    failed = [size for size in tried if size > room]
    assert failed == sorted(set(failed), reverse=True)  # what was too much once is not tried again


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
)
def test_want_of_memory_is_recognised(error: Exception) -> None:
    def run(batch: list[int]) -> int:
        raise error

    assert memory.is_out_of_memory(error)
    with pytest.raises(type(error)):  # nothing is left to halve
        list(memory.in_parts([[1, 2, 3]], len, run))


def test_other_errors_are_not_tried_again() -> None:
    tried = []

    def run(batch: list[int]) -> int:
        tried.append(batch)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(memory.in_parts([[1, 2, 3], [4]], len, run))
    assert tried == [[1, 2, 3]]


def test_residuals_come_out_the_same(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model, words = tiny("llama")
    site, config = find_site(model, 1), ResidualConfig(4, 0.5, 0.5, 0.75, 0.0625)
    groups = [[fact] for fact in FACTS]
    wanted = solve_residuals(model, words, site, groups, PREFIXES, config)
    plain = FastForward.logits

    def small(self: FastForward, r: torch.Tensor) -> torch.Tensor:
        if len(r) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, r)

    monkeypatch.setattr(FastForward, "logits", small)
    with caplog.at_level(logging.WARNING):
        found = solve_residuals(model, words, site, groups, PREFIXES, config)
    assert "out of memory with 4" in caplog.text
    for got, one in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got.residual, one.residual, rtol=1e-3, atol=1e-4)


def test_keys_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from neuraldb_faiss.solver import keys

    model, words = tiny("llama")
    site = find_site(model, 1)
    wanted = compute_keys(model, words, site, FACTS, PREFIXES).keys
    plain = keys.KeyRunner._keys

    def small(self: Any, rows: Any, common: int, past: Any) -> torch.Tensor:
        if len(rows) > 2:
            raise MemoryError
        return plain(self, rows, common, past)

    monkeypatch.setattr(keys.KeyRunner, "_keys", small)
    found = compute_keys(model, words, site, FACTS, PREFIXES).keys
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_places_follow_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny("llama")
    site = find_site(model, 1)
    assert memory.free_bytes(torch.device("cpu")) > 1 << 20
    assert memory.places_with_gradients(model, site, 512) == 512
    seen = []
    for free in (0, 1 << 20, 1 << 21):
        monkeypatch.setattr(memory, "free_bytes", lambda device, free=free: free)
        seen.append(memory.places_with_gradients(model, site, 100_000))
    assert seen[0] == 1 and 1 < seen[1] < seen[2] <= 2 * seen[1] + 1
