"""The sketch fires what brute force fires."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.index.sketch import BLOCK, SketchSearcher, _in_bytes, _products
from neuraldb_faiss.index.vectors import unit_blocks

GATE = 0.65


def case(n: int = 3_000, d: int = 256) -> tuple[FakeSnapshot, np.ndarray, np.ndarray]:
    """Keys, queries about the gate, and the exact cosines of both."""
    random = np.random.default_rng(0)
    snapshot = FakeSnapshot(random.standard_normal((n, d)) + random.standard_normal(d))
    stored = snapshot.stored[:400].astype(np.float32)
    near = stored + random.standard_normal((400, d)) * random.uniform(0, 0.12, (400, 1))
    queries = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    keys = snapshot.stored.astype(np.float64)
    return snapshot, queries, queries @ (keys / np.linalg.norm(keys, axis=1, keepdims=True)).T


def sketch(snapshot: FakeSnapshot, **how: int) -> SketchSearcher:
    searcher = SketchSearcher(snapshot, **how)
    for block in unit_blocks(snapshot):
        searcher.add(block)
    return searcher


@pytest.mark.parametrize("width", [64, 160, 1000])
def test_what_can_fire_is_found_with_its_exact_cosine(width: int) -> None:
    snapshot, queries, cosines = case()
    scores, positions = sketch(snapshot, width=width).search(queries, 8, above=GATE)
    best, top = cosines.argmax(1), cosines.max(1)
    fires = top > GATE
    assert 50 < fires.sum() < 350
    assert positions[fires, 0].tolist() == best[fires].tolist()
    np.testing.assert_allclose(scores[fires, 0], top[fires], atol=1e-5)
    assert (scores[~fires, 0] < GATE).all() and (positions[:, 0] >= 0).all()
    for row in range(len(queries)):  # the rest of the row: keys in order, scored exactly, or none
        kept = positions[row] >= 0
        if fires[row]:
            np.testing.assert_allclose(scores[row, kept], cosines[row, positions[row, kept]], atol=1e-5)
        assert (np.diff(scores[row, kept]) <= 0).all() and kept.tolist() == sorted(kept.tolist(), reverse=True)


def test_the_margin_is_wide_enough_at_the_gate_itself() -> None:
    """Pairs whose cosine is the gate, whatever the dimensions: those below the floor are as rare as Z says."""
    random = np.random.default_rng(1)
    searcher = sketch(FakeSnapshot(np.eye(512)), width=64)
    a, b = np.linalg.qr(random.standard_normal((4_000, 512, 2)))[0].transpose(2, 0, 1)
    c = GATE * a + np.sqrt(1 - GATE**2) * b
    seen = (searcher._sketch(a.astype(np.float32)) * searcher._sketch(c.astype(np.float32))).sum(1)
    assert (seen < searcher._floor(GATE)).mean() < 1e-3 and seen.std() > 0.05


def test_adding_masks_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuraldb_faiss.index.sketch.BLOCK", 700)
    monkeypatch.setattr("neuraldb_faiss.index.sketch.PRODUCTS", 400 * 130)
    snapshot, queries, _ = case()
    at_once = sketch(snapshot)
    grown = sketch(FakeSnapshot(np.empty((0, 256))))
    assert grown.ntotal == 0 and (grown.search(queries[:2], 3, above=GATE)[1] == -1).all()
    grown.follow(snapshot)
    for first in range(0, 3_000, 450):
        rows = snapshot.stored[first : first + 450].astype(np.float32)
        grown.add(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert grown.ntotal == at_once.ntotal == 3_000 and BLOCK > 700
    found = at_once.search(queries, 4, above=GATE)[1]
    assert grown.search(queries, 4, above=GATE)[1].tolist() == found.tolist()
    allowed = np.ones(3_000, bool)
    allowed[found[:, 0]] = False
    masked = at_once.search(queries, 4, allowed, GATE)[1]
    assert not np.isin(masked[:, 0], found[:, 0]).any()
    assert at_once.search(queries[:1], 4, above=GATE)[1].tolist() == found[:1].tolist()


@pytest.mark.parametrize(("b", "n", "m"), [(1, 1, 8), (1, 5_000, 160), (7, 33, 13), (64, 999, 64)])
def test_products_in_bytes(monkeypatch: pytest.MonkeyPatch, b: int, n: int, m: int) -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((b + n, m)).astype(np.float32)
    rows[-1] = 0
    codes, ones, errors = _in_bytes(rows)
    assert (np.linalg.norm(rows - codes.numpy() * ones.numpy()[:, None], axis=1) <= errors + 1e-6).all()
    assert errors.max() < 0.01 * np.linalg.norm(rows, axis=1).max()
    found = _products(codes[:b], codes[b:]).numpy()
    assert (found == codes[:b].numpy().astype(np.int64) @ codes[b:].numpy().astype(np.int64).T).all()
    monkeypatch.delattr("torch._int_mm")
    assert (_products(codes[:b], codes[b:]).numpy() == found).all()


def test_the_matcher_answers_as_with_flat_while_keys_come_and_go() -> None:
    snapshot, queries, cosines = case()
    first = FakeSnapshot(snapshot.stored[:1_000])
    matchers = [Matcher(first, kind, gamma=GATE) for kind in ("sketch", "flat")]
    assert matchers[0].kind == "sketch"
    for source in (first, snapshot):
        for one in matchers:
            one.refresh(source)
        found, exact = (one.match(queries) for one in matchers)
        assert found.fired.tolist() == exact.fired.tolist() and int(found.fired.sum()) > 30
        fires = exact.fired
        assert found.entry_ids[fires].tolist() == exact.entry_ids[fires].tolist()
        assert found.scores[fires].tolist() == exact.scores[fires].tolist()
    snapshot.live[cosines.argmax(1)[:200]] = False
    found, exact = (Matcher(snapshot, kind, gamma=GATE).match(queries) for kind in ("sketch", "flat"))
    assert found.fired.tolist() == exact.fired.tolist()
    assert found.entry_ids[exact.fired].tolist() == exact.entry_ids[exact.fired].tolist()
    lower = Matcher(snapshot, "sketch", gamma=0.9).match(queries, gamma=GATE)
    assert lower.fired.tolist() == exact.fired.tolist()
    named = Matcher(snapshot, "sketch", gamma=GATE).match(queries, exact=True)
    assert (named.entry_ids >= 0).all() and named.fired.tolist() == exact.fired.tolist()
    assert (named.scores[~named.fired] <= GATE).all()
    everything = sketch(snapshot).search(queries[:20], 5)  # no gate: the nearest, whatever they score
    nearest = np.argsort(-cosines[:20], axis=1)[:, :5]
    assert everything[1].tolist() == nearest.tolist()
