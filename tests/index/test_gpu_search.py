"""Search on GPUs, with faiss-gpu's names over CPU indices: float16 scores, no selector, k <= 2048, several GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import fake_gpu
from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.index import Matcher, faiss_module
from neuraldb_faiss.index.device_matcher import decide, unit_rows
from neuraldb_faiss.index.gpu import HALF_TOLERANCE, TEMP_BYTES, GpuFlatSearcher, GpuIvfSearcher

CPU = torch.device("cpu")
GAMMA = 0.65
D = 96


@pytest.fixture(autouse=True, params=[1, 3])
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    fake_gpu.install(monkeypatch, request.param)
    return int(request.param)


def crowded(rng: np.random.Generator, n: int = 3000) -> np.ndarray:
    """Keys of which many differ by less than float16 tells apart: around each of 20 centres a hundred and more."""
    centres = rng.standard_normal((20, D))
    keys = centres[rng.integers(20, size=n)] + 3e-3 * rng.standard_normal((n, D))
    keys[: n // 3] = rng.standard_normal((n // 3, D))
    keys[50:80] = keys[7]
    return keys


def asked(rng: np.random.Generator, keys: np.ndarray, n: int = 400) -> np.ndarray:
    """Rows at these cosines from keys, just at the gate among them, of any length; some without a direction."""
    rows = []
    for i in range(n):
        key = keys[rng.integers(len(keys))] / 1.0
        key = key / np.linalg.norm(key)
        other = rng.standard_normal(D)
        other -= (other @ key) * key
        cosine = [0.2, GAMMA - 1e-4, GAMMA + 1e-4, GAMMA + 1e-5, 0.9, 1.0][i % 6]
        row = cosine * key + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
        rows.append(row * 10.0 ** rng.integers(-20, 20))
    rows[3][:], rows[4][2], rows[5][9] = 0, np.nan, np.inf
    return np.array(rows, np.float32)


def brute_force(snapshot: FakeSnapshot, queries: np.ndarray, first: np.ndarray) -> list[int]:
    """The nearest key above the gate, the lowest of equal ones, -1 for none: in float64, key by key."""
    keys, found = snapshot.stored.astype(np.float64), []
    for row, token in zip(queries.astype(np.float64), first, strict=True):
        answering = snapshot.live & (snapshot.key_tokens == token)
        if not np.isfinite(row).all() or not row.any() or not answering.any():
            found.append(-1)
            continue
        row = row / np.abs(row).max()
        cosines = (row * keys).sum(axis=1) / np.sqrt((row * row).sum()) / np.sqrt((keys * keys).sum(axis=1))
        cosines[~answering] = -1
        found.append(int(cosines.argmax()) if cosines.max() > GAMMA else -1)
    return found


def fired(matcher: Matcher, queries: np.ndarray, first: np.ndarray) -> list[int]:
    rows = torch.from_numpy(queries)
    candidates = matcher.candidates(rows, lambda: (np.ones(len(first), bool), first))
    found = np.full(len(queries), -1)
    winners = decide(candidates, rows, matcher.gamma).fires.numpy()
    assert len(np.unique(candidates.rows[winners])) == winners.sum()
    found[candidates.rows[winners]] = candidates.positions[winners]
    return found.tolist()


@pytest.mark.parametrize("share_live", [1.0, 0.9, 0.03, 0.0])
def test_flat_in_float16_is_exact(share_live: float) -> None:
    """Rounded scores alone would name others: the exact cosine of every key that rounding may hide decides."""
    rng = np.random.default_rng(1)
    keys = crowded(rng)
    tokens = np.where(rng.random(len(keys)) < 0.05, rng.integers(0, 9, len(keys)), -1)
    snapshot = FakeSnapshot(keys, tokens=tokens, live=rng.random(len(keys)) < share_live)
    queries = asked(rng, snapshot.stored.astype(np.float64))
    first = np.where(rng.random(len(queries)) < 0.2, rng.integers(0, 12, len(queries)), -1)
    matcher = Matcher(snapshot, "flat", gamma=GAMMA, device=CPU)
    want = brute_force(snapshot, queries, first)
    assert fired(matcher, queries, first) == want
    assert share_live < 1 or sum(one >= 0 for one in want) > 100
    got = matcher.match(queries, first_tokens=first)  # the way through the host, by the same index
    wanted = [int(snapshot.key_entries[one]) if one >= 0 else None for one in want]
    assert [int(e) if f else None for e, f in zip(got.entry_ids, got.fired, strict=True)] == wanted


def test_the_rounded_winner_is_not_always_the_exact_one() -> None:
    """Or the test above would prove nothing."""
    rng = np.random.default_rng(1)
    snapshot = FakeSnapshot(crowded(rng))
    queries = asked(rng, snapshot.stored.astype(np.float64))
    searcher: Any = Matcher(snapshot, "flat", gamma=GAMMA, device=CPU)._searcher
    nearest = searcher.nearest(unit_rows(torch.from_numpy(queries))[0], 1)[1][:, 0].tolist()
    want = brute_force(snapshot, queries, np.full(len(queries), -1))
    assert sum(a != b for a, b in zip(nearest, want, strict=True) if b >= 0) > 20


@pytest.mark.parametrize("d", [64, 1536, 14336])
def test_float16_scores_stay_within_the_tolerance(d: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((60, d)) * np.exp(2 * rng.standard_normal((60, d)))
    snapshot = FakeSnapshot(rows)
    keys = snapshot.stored.astype(np.float64)
    unit = torch.from_numpy(rows + 0.3 * rng.standard_normal(rows.shape)).float()
    unit = unit_rows(unit)[0]
    searcher: Any = Matcher(snapshot, "flat", gamma=GAMMA, device=CPU)._searcher
    near, at = (one.numpy() for one in searcher.nearest(unit, 60))
    exact = unit.double().numpy() @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T
    assert np.abs(near - np.take_along_axis(exact, at, axis=1)).max() < HALF_TOLERANCE


def test_more_equal_keys_than_a_gpu_gives() -> None:
    """2,500 dead keys in front of the live one, where k ends at 2,048: the searcher looks through all of its own."""
    keys = np.tile(np.random.default_rng(3).standard_normal((1, D)), (2600, 1))
    snapshot = FakeSnapshot(keys, live=np.arange(2600) >= 2500)
    matcher = Matcher(snapshot, "flat", gamma=GAMMA, device=CPU)
    assert fired(matcher, keys[:3].astype(np.float32), np.full(3, -1)) == [2500] * 3


def test_refresh_only_adds(gpus: int) -> None:
    rng = np.random.default_rng(4)
    keys = rng.standard_normal((1500, D))
    queries, first = keys.astype(np.float32), np.full(1500, -1)
    for kind in ("flat", "ivf"):
        settings = {"nlist": 8, "nprobe": 8} if kind == "ivf" else {}
        matcher = Matcher(FakeSnapshot(keys[:1400]), kind, gamma=GAMMA, device=CPU, **settings)
        newer = FakeSnapshot(keys)
        matcher.refresh(newer)
        assert newer.blocks_read == 100
        assert fired(matcher, queries, first) == list(range(1500))
        matcher.refresh(FakeSnapshot(keys[:1000]))  # a rollback: later keys stay in the index and are silent
        assert fired(matcher, queries, first) == [*range(1000), *[-1] * 500]
        matcher.refresh(FakeSnapshot(keys[1000:], epoch=1))
        assert fired(matcher, queries[1000:], first[1000:]) == list(range(500))
        searcher: Any = matcher._searcher
        assert isinstance(searcher, GpuFlatSearcher if kind == "flat" else GpuIvfSearcher)
        assert len(searcher._shards) == gpus
        assert {shard.index.resources.temp_memory for shard in searcher._shards} == {TEMP_BYTES}


def test_keys_are_spread_over_all_gpus(gpus: int) -> None:
    keys = np.random.default_rng(5).standard_normal((2100, D))
    searcher: Any = Matcher(FakeSnapshot(keys, block=350), "flat", gamma=GAMMA, device=CPU)._searcher
    assert sorted(shard.count for shard in searcher._shards) == [2100 // gpus] * gpus
    assert [shard.index.device for shard in searcher._shards] == list(range(gpus))


@pytest.mark.parametrize("share_live", [1.0, 0.2])
def test_ivf_that_visits_every_list(share_live: float) -> None:
    rng = np.random.default_rng(6)
    keys = crowded(rng, 1200)
    snapshot = FakeSnapshot(keys, live=rng.random(len(keys)) < share_live)
    queries = asked(rng, snapshot.stored.astype(np.float64), 200)
    first = np.full(len(queries), -1)
    matcher = Matcher(snapshot, "ivf", gamma=GAMMA, nlist=10, nprobe=10, device=CPU)
    assert fired(matcher, queries, first) == brute_force(snapshot, queries, first)


def test_ivf_files_serve_gpu_and_cpu(tmp_path: Path) -> None:
    """What one writes the other opens, without training."""
    keys = np.random.default_rng(7).standard_normal((1500, 32))
    snapshot, queries = FakeSnapshot(keys), keys.astype(np.float32)
    gpu = Matcher(snapshot, "ivf", gamma=GAMMA, directory=tmp_path, device=CPU)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before
    cpu = Matcher(snapshot, "ivf", gamma=GAMMA, directory=tmp_path)
    assert not cpu.on_gpu and cpu.match(queries).fired.all()
    again = Matcher(snapshot, "ivf", gamma=GAMMA, directory=tmp_path, device=CPU)
    assert fired(again, queries, np.full(1500, -1)) == fired(gpu, queries, np.full(1500, -1)) == list(range(1500))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_empty_and_nothing_to_answer() -> None:
    for kind in ("flat", "ivf"):
        matcher = Matcher(FakeSnapshot(np.zeros((0, D))), kind, gamma=GAMMA, device=CPU)
        assert fired(matcher, np.ones((3, D), np.float32), np.full(3, -1)) == [-1] * 3
    matcher = Matcher(FakeSnapshot(np.ones((5, D))), gamma=GAMMA, device=CPU)
    assert fired(matcher, np.ones((0, D), np.float32), np.full(0, -1)) == []


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_keys_that_do_not_fit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("Error in virtual void* allocMemory(): StandardGpuResources: alloc fail\nout of memory")

    keys = np.random.default_rng(0).standard_normal((70, D))
    monkeypatch.setattr(fake_gpu.Flat, "add", full)
    with pytest.raises(SearchError, match="70 keys of 96 do not fit on cpu.*subject guard.*faiss-cpu.*out of memory"):
        Matcher(FakeSnapshot(keys), kind, gamma=GAMMA, device=CPU)


def test_faiss_cpu_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    monkeypatch.setattr(faiss_module, "load_faiss", lambda: faiss)
    assert faiss_module.gpu_count() == 0
    assert not Matcher(FakeSnapshot(np.ones((5, D))), gamma=GAMMA, device=CPU).on_gpu
