"""The matcher against a brute force in float64."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.index import Matcher, Matches

GAMMA = 0.65
D = 96


def brute_force(
    snapshot: FakeSnapshot, queries: np.ndarray, gamma: float, first_tokens: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entry, cosine and firing of every query, one by one, over every key, in float64."""
    keys = snapshot.stored.astype(np.float64)
    entries, scores = np.full(len(queries), -1), np.zeros(len(queries))
    for i, query in enumerate(queries.astype(np.float64)):
        if not np.isfinite(query).all() or not query.any():
            continue
        query = query / np.abs(query).max()
        query = query / np.sqrt((query * query).sum())
        allowed = snapshot.live.copy()
        if first_tokens is not None:
            allowed &= snapshot.key_tokens == max(first_tokens[i], -1)
        if not allowed.any():
            continue
        cosines = (keys * query).sum(axis=1) / np.sqrt((keys * keys).sum(axis=1))
        cosines[~allowed] = -np.inf
        at = int(cosines.argmax())
        entries[i], scores[i] = snapshot.key_entries[at], cosines[at]
    return entries, scores, (entries >= 0) & (scores > gamma)


def mixed(key: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """A unit vector at this cosine from the key."""
    key = key.astype(np.float64) / np.linalg.norm(key.astype(np.float64))
    other = rng.standard_normal(len(key))
    other -= (other @ key) * key
    return cosine * key + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)


def random_snapshot(rng: np.random.Generator, n: int = 5000, **options: np.ndarray) -> FakeSnapshot:
    """Random keys, a tenth of them exact duplicates of others, two keys to an entry."""
    keys = rng.standard_normal((n, D))
    copies = rng.choice(n, n // 10, replace=False)
    keys[copies] = keys[rng.choice(n, n // 10)]
    keys[n // 2 : n // 2 + 30] = keys[7]  # more equal keys than the matcher asks for at first
    return FakeSnapshot(keys, entries=rng.permutation(n) // 2, **options)


def random_queries(snapshot: FakeSnapshot, rng: np.random.Generator, n: int = 600) -> np.ndarray:
    """Far from every key, near the gate on both sides, far above it, of any norm; some zero, NaN and inf."""
    rows = []
    for i in range(n):
        key = snapshot.stored[rng.integers(snapshot.n_keys)]
        cosine = [0.2, GAMMA - 2e-4, GAMMA + 2e-4, GAMMA - 2e-6, GAMMA + 2e-6, 0.9, 1.0][i % 7]
        rows.append(mixed(key, cosine, rng) * 10.0 ** rng.integers(-30, 30))
    rows += [mixed(snapshot.stored[7], c, rng) for c in (1.0, 0.9, 0.7, GAMMA + 1e-5)]
    queries = np.array(rows, np.float32)
    queries[5], queries[50, 3], queries[51, 9], queries[52, 0] = 0, np.nan, np.inf, -np.inf
    return queries


def check(got: Matches, want: tuple[np.ndarray, np.ndarray, np.ndarray], *, complete: bool) -> None:
    entries, scores, fired = want
    dtypes = [got.entry_ids.dtype, got.scores.dtype, got.fired.dtype]
    assert dtypes == [torch.int64, torch.float32, torch.bool]
    assert (got.fired.numpy() == fired).all()
    rows = np.ones(len(fired), bool) if complete else fired
    assert (got.entry_ids.numpy()[rows] == entries[rows]).all()
    np.testing.assert_allclose(got.scores.numpy()[rows], scores[rows], atol=1e-7)


@pytest.mark.parametrize("share_live", [1.0, 0.9, 0.05, 0.0])
@pytest.mark.parametrize("kind", ["flat", "ivf", "sketch"])
def test_equals_brute_force(kind: str, share_live: float) -> None:
    rng = np.random.default_rng(1)
    snapshot = random_snapshot(rng, live=rng.random(5000) < share_live)
    queries = random_queries(snapshot, rng)
    settings = {"nlist": 20, "nprobe": 20} if kind == "ivf" else {}
    matcher = Matcher(snapshot, kind, gamma=GAMMA, **settings)
    want = brute_force(snapshot, queries, GAMMA)
    assert share_live < 1 or 150 < want[2].sum() < 500
    check(matcher.match(queries), want, complete=False)
    check(matcher.match(queries, exact=True), want, complete=kind != "sketch")


def test_first_tokens() -> None:
    rng = np.random.default_rng(2)
    tokens = np.where(rng.random(5000) < 0.1, rng.integers(0, 40, 5000), -1)
    snapshot = random_snapshot(rng, live=rng.random(5000) < 0.8, tokens=tokens)
    queries = random_queries(snapshot, rng)
    first = np.where(rng.random(len(queries)) < 0.5, rng.integers(0, 50, len(queries)), -1)
    matcher = Matcher(snapshot, "flat", gamma=GAMMA)
    want = brute_force(snapshot, queries, GAMMA, first)
    check(matcher.match(queries, first_tokens=first), want, complete=False)
    check(matcher.match(queries, first_tokens=first, exact=True), want, complete=True)
    _, where, copies = np.unique(snapshot.stored, axis=0, return_index=True, return_counts=True)
    alone = np.isin(np.arange(5000), where[copies == 1])
    at = int(np.flatnonzero((tokens >= 0) & snapshot.live & alone)[0])
    key, token = snapshot.stored[at : at + 1].astype(np.float32), int(tokens[at])
    for given, fires in (([token], True), ([token + 1], False), ([-1], False)):
        assert bool(matcher.match(key, first_tokens=np.array(given)).fired[0]) == fires
    assert bool(matcher.match(key).fired[0])  # no first tokens: the plain gate


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.95])
def test_gamma_of_a_call(gamma: float) -> None:
    rng = np.random.default_rng(3)
    snapshot = random_snapshot(rng, n=500)
    queries = random_queries(snapshot, rng, 150)
    matcher = Matcher(snapshot, gamma=GAMMA)
    check(matcher.match(queries, gamma), brute_force(snapshot, queries, gamma), complete=False)


def test_batch_size_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    snapshot = random_snapshot(rng, live=rng.random(5000) < 0.7)
    queries = random_queries(snapshot, rng, 210)
    matcher = Matcher(snapshot, gamma=GAMMA)
    whole = matcher.match(queries, exact=True)
    for size in (1, 7, 64):
        parts = [matcher.match(queries[i : i + size], exact=True) for i in range(0, len(queries), size)]
        for name in ("entry_ids", "scores", "fired"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_dtypes(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(5)
    snapshot = random_snapshot(rng, n=300)
    queries = torch.from_numpy(snapshot.stored.astype(np.float32) * 3).to(dtype)
    got = Matcher(snapshot, gamma=GAMMA).match(queries)
    check(got, brute_force(snapshot, queries.double().numpy(), GAMMA), complete=True)


def test_float64_beyond_float32() -> None:
    snapshot = random_snapshot(np.random.default_rng(6), n=50)
    rows = snapshot.stored[:4].astype(np.float64) * [[1e200], [1e-200], [1], [0]]
    got = Matcher(snapshot, gamma=GAMMA).match(rows)
    assert got.fired.tolist() == [True, True, True, False]


def test_equal_keys_answer_with_the_first_live_one() -> None:
    live = np.ones(3000, bool)
    live[:2000] = False
    keys = np.tile(np.random.default_rng(7).standard_normal((1, D)), (3000, 1))
    got = Matcher(FakeSnapshot(keys, live=live), gamma=GAMMA).match(keys[:3])
    assert got.entry_ids.tolist() == [2000] * 3 and got.fired.all()


def test_removed_keys_give_way_to_the_next_best_at_once() -> None:
    rng = np.random.default_rng(8)
    key = rng.standard_normal(D)
    keys = np.stack([mixed(key, c, rng) for c in np.linspace(0.99, 0.5, 40)])
    snapshot = FakeSnapshot(keys)
    matcher = Matcher(snapshot, gamma=GAMMA)
    for gone in range(41):
        live = np.arange(40) >= gone
        matcher.refresh(FakeSnapshot(keys, live=live))
        entries, _, fired = brute_force(FakeSnapshot(keys, live=live), key[None], GAMMA)
        got = matcher.match(key[None])
        assert got.fired.tolist() == fired.tolist()
        assert not fired[0] or got.entry_ids.tolist() == entries.tolist()


def test_refresh_adds_only_new_keys() -> None:
    rng = np.random.default_rng(9)
    keys = rng.standard_normal((1500, D))
    for kind in ("flat", "ivf", "sketch"):
        matcher = Matcher(FakeSnapshot(keys[:1400]), kind, gamma=GAMMA)
        newer = FakeSnapshot(keys)
        matcher.refresh(newer)
        assert newer.blocks_read == 100
        assert matcher.match(keys).entry_ids.tolist() == list(range(1500))
        older = FakeSnapshot(keys[:1000])  # a rollback: later keys stay in the index and are silent
        matcher.refresh(older)
        assert older.blocks_read == 0
        got = matcher.match(keys)
        assert got.fired.tolist() == [True] * 1000 + [False] * 500
        compacted = FakeSnapshot(keys[1000:], epoch=1)
        matcher.refresh(compacted)
        assert compacted.blocks_read == 500
        assert matcher.match(keys[1000:]).entry_ids.tolist() == list(range(500))


def test_no_keys_and_no_queries_match_nothing() -> None:
    for kind in ("flat", "ivf", "sketch"):
        got = Matcher(FakeSnapshot(np.zeros((0, D))), kind, gamma=GAMMA).match(np.ones((3, D)), exact=True)
        assert got.entry_ids.tolist() == [-1] * 3 and not got.fired.any()
    matcher = Matcher(random_snapshot(np.random.default_rng(0), n=100), gamma=GAMMA)
    assert len(matcher.match(torch.zeros(0, D))) == 0


def test_damaged_stored_keys_never_fire() -> None:
    snapshot = random_snapshot(np.random.default_rng(10), n=100)
    snapshot.stored[3], snapshot.stored[4] = np.nan, 0
    matcher = Matcher(snapshot, gamma=0.0)
    got = matcher.match(snapshot.stored[5:9].astype(np.float32), exact=True)
    assert got.entry_ids.tolist() == snapshot.key_entries[5:9].tolist()


def test_unusable_arguments_are_refused() -> None:
    snapshot = random_snapshot(np.random.default_rng(11), n=100)
    for gamma in (-0.1, 1.0, float("nan")):
        with pytest.raises(SearchError, match="gamma is"):
            Matcher(snapshot, gamma=gamma)
    with pytest.raises(SearchError, match="unknown index kind 'hnsw'"):
        Matcher(snapshot, "hnsw", gamma=GAMMA)
    with pytest.raises(SearchError, match="belong to the index kind 'ivf'"):
        Matcher(snapshot, "flat", gamma=GAMMA, nlist=4)
    with pytest.raises(SearchError, match="nprobe is 0"):
        Matcher(snapshot, "ivf", gamma=GAMMA, nprobe=0)
    with pytest.raises(SearchError, match=r"expected \[n, 96\]"):
        Matcher(snapshot, gamma=GAMMA).match(np.ones((2, 5)))


def test_threads_match_while_one_refreshes() -> None:
    rng = np.random.default_rng(12)
    keys = rng.standard_normal((4000, D))
    matcher = Matcher(FakeSnapshot(keys[:1000]), gamma=GAMMA)
    wrong: list[object] = []

    def read() -> None:
        for _ in range(60):
            got = matcher.match(keys[:20])
            if got.entry_ids.tolist() != list(range(20)) or not got.fired.all():
                wrong.append(got)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for n in range(1100, 4001, 100):
        matcher.refresh(FakeSnapshot(keys[:n]))
    for thread in threads:
        thread.join()
    assert not wrong
    assert matcher.match(keys[-3:]).fired.all()
