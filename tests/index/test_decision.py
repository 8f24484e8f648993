"""One rule, written for NumPy and for torch: both decide alike."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.device_matcher import decide as decide_in_torch
from neuraldb_faiss.index.matcher import Best
from neuraldb_faiss.index.matcher import decide as decide_in_numpy

GAMMA = 0.1


@pytest.mark.parametrize("seed", range(5))
def test_numpy_and_torch_fire_the_same_keys_with_the_same_cosines(seed: int) -> None:
    random = np.random.default_rng(seed)
    stored = random.normal(size=(60, 16)).astype(np.float16)
    stored[30:40] = stored[20:30]  # equal keys: the lowest position wins
    queries = random.normal(size=(20, 16)).astype(np.float32)
    pairs = np.unique(np.stack([random.integers(0, 20, 200), random.integers(0, 60, 200)]), axis=1)
    rows, positions = pairs
    floors = random.choice([0.0, 0.3, 0.9], len(rows))
    behind = random.choice([0.0, 0.05], len(rows))
    source: Any = SimpleNamespace(d1=16, n_keys=60, keys=lambda at: stored[at])

    best = Best.none(20)
    decide_in_numpy(source, queries, rows, positions, best, np.maximum(floors, GAMMA), behind)
    found = decide_in_torch(Candidates(rows, positions, floors, source, behind), torch.from_numpy(queries), GAMMA)

    fires = found.fires.numpy()
    fired = np.flatnonzero(best.positions >= 0)
    assert len(fired) and rows[fires].tolist() == fired.tolist()
    assert positions[fires].tolist() == best.positions[fired].tolist()
    np.testing.assert_allclose(found.cosines.numpy()[fires], best.scores[fired], rtol=0, atol=1e-14)
