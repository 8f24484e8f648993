"""The parts that run at every token or change, each on its own. They run once as tests; to time them:

.venv/bin/python -m pytest tests/research/benchmarks/test_parts.py --benchmark-enable --benchmark-only
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny_tokenizer
from neuraldb_faiss.guard.subject import SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.research.benchmarks import synthetic
from neuraldb_faiss.store import Store

FACTS, D1, D2, TOKENS = 2_000, 128, 32, 512
Benchmark = Callable[..., Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = synthetic.make(tmp_path_factory.mktemp("parts") / "db", FACTS, d1=D1, d2=D2)
    yield made
    made.close()


def text() -> tuple[Texts, np.ndarray]:
    """A text of TOKENS tokens that names one subject."""
    words = tiny_tokenizer("bytelevel")
    ids = words("Here Subject 7 is meant; " + "the city of Rome is in Italy and " * TOKENS).input_ids
    return Texts.of(words), np.array(ids[:TOKENS])[None]


def test_folding_a_text(benchmark: Benchmark) -> None:
    texts, ids = text()
    starts = np.arange(TOKENS)[None] == 0
    folded = benchmark(texts.fold, np.empty((1, 0), np.int64), ids, np.ones(ids.shape, bool), starts, 400)
    assert folded.tokens.max() == TOKENS - 1


def test_the_guard_over_a_text(benchmark: Benchmark, store: Store) -> None:
    texts, ids = text()
    starts = np.arange(TOKENS)[None] == 0
    folded = texts.fold(np.empty((1, 0), np.int64), ids, np.ones(ids.shape, bool), starts, 400)
    matcher = SubjectMatcher(store.snapshot(), gamma=0.45)
    found = benchmark(matcher.candidates, folded, np.full(TOKENS, -1))
    assert len(found.positions) == 2  # the two keys of one fact


@pytest.mark.parametrize("queries", [1, 64])
@pytest.mark.parametrize("kind", ["flat", "ivf", "sketch"])
def test_the_plain_gate(benchmark: Benchmark, kind: str, queries: int) -> None:
    random = np.random.default_rng(0)
    snapshot = FakeSnapshot(random.standard_normal((2 * FACTS, D1)))
    asked = snapshot.stored[:queries].astype(np.float32) + 0.02 * random.standard_normal((queries, D1), np.float32)
    matches = benchmark(Matcher(snapshot, kind, gamma=0.65).match, asked)
    assert matches.entry_ids.tolist() == list(range(queries)) and bool(matches.fired.all())


def test_gathering_residuals(benchmark: Benchmark, store: Store) -> None:
    snapshot = store.snapshot()
    entries = np.random.default_rng(0).integers(0, FACTS, 64)
    assert benchmark(snapshot.residuals, entries).shape == (64, D2)


def test_opening(benchmark: Benchmark, store: Store) -> None:
    def reopen(root: Path) -> int:
        again = Store(root)
        try:
            return int(again.snapshot().n_entries)
        finally:
            again.close()

    assert benchmark(reopen, store.root) == FACTS


def test_adding_one_fact(benchmark: Benchmark, tmp_path: Path) -> None:
    store = synthetic.make(tmp_path / "db", 10, d1=D1, d2=D2)
    numbers = iter(range(10, 1_000_000))
    done = benchmark(lambda: synthetic.append(store, 1, first=next(numbers)))
    assert done.generation == store.generation and store.snapshot().n_entries == next(numbers)
    store.close()
