"""`flat` against a plain float64 brute force over 5,000 keys of real facts in the demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.facts import fold, read_facts
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import find_site
from neuraldb_faiss.solver import compute_keys, generate_prefixes

GAMMA = 0.65


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_real_keys_equal_brute_force(demo_model: tuple[Any, Any], test_data: Path) -> None:
    model, tokenizer = demo_model
    facts = fold(read_facts(test_data / "counterfact.jsonl.gz", limit=2_900), "first").facts
    rows = compute_keys(model, tokenizer, find_site(model, 3), facts, generate_prefixes(model, tokenizer))
    stored, strangers = rows.keys[:5_000], rows.keys[5_000:5_600]
    random = np.random.default_rng(0)
    stored = np.concatenate([stored, stored[:50]])  # ties: the first of equal keys must answer
    noise = random.standard_normal((500, stored.shape[1])) * np.abs(stored[:500]).mean()
    noisy = stored[:500] + noise * random.uniform(0, 3, (500, 1))  # hits, misses and what lies between
    queries = np.concatenate([stored[:1_000], noisy, strangers]).astype(np.float32)

    snapshot = FakeSnapshot(stored)
    found = Matcher(snapshot, "flat", gamma=GAMMA).match(queries, exact=True)

    keys = snapshot.stored.astype(np.float64)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    unit = queries.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosines = unit @ keys.T
    best = cosines.max(axis=1)
    clear = np.abs(best - GAMMA) > 1e-6
    np.testing.assert_array_equal(found.fired.numpy()[clear], (best > GAMMA)[clear])
    np.testing.assert_allclose(found.scores.numpy(), best, atol=1e-6)
    chosen = found.entry_ids.numpy()
    np.testing.assert_allclose(cosines[np.arange(len(queries)), chosen], best, atol=1e-7)
    np.testing.assert_array_equal(chosen[:50], np.arange(50))
    assert 0.2 < (best > GAMMA).mean() < 0.999  # the data has both hits and misses
