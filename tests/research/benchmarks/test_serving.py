"""The benchmark of servers counts what they answer, and what they do not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from helpers.serving import serving
from helpers.tiny import save_tiny, tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.research.benchmarks import serving as bench
from neuraldb_faiss.serving.settings import Limits, Tokens


def test_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "PROMPT_WORDS", (2, 5))
    monkeypatch.setattr(bench, "ANSWER_TOKENS", (1, 4, 50))
    save_tiny(tmp_path / "tiny")
    build([Fact("Rome", "{} is in", "Paris")], *tiny(), tmp_path / "db", residual="none").close()
    with serving(tmp_path, {"db": tmp_path / "db"}, Tokens(None, {}), Limits(new_tokens=40)) as served:
        found = bench.bench_serving({"one": served.url, "other": served.url}, clients=[1, 3], number=6, repeats=1)
    assert list(found) == ["one_1_clients", "other_1_clients", "one_3_clients", "other_3_clients"]
    for row in found.values():
        assert row["requests"] == 6 and row["failures"] == 2 and row["errors"] == ["HTTP 400"]  # 50 tokens are too many
        assert 0 < row["first_text_median"] <= row["seconds_median"] <= row["seconds_p95"]
        assert row["tokens_per_second"] > 0


def test_requests_are_mixed_and_the_same_for_every_server() -> None:
    one = bench.requests(36)
    assert one == bench.requests(36) != bench.requests(36, 1)
    assert {asked.tokens for asked in one} == set(bench.ANSWER_TOKENS)
    assert {len(asked.prompt.split()) for asked in one} == set(bench.PROMPT_WORDS)


def test_nobody_there_is_an_error() -> None:
    with pytest.raises(NeuralDBError, match="start it"):
        bench.bench_serving({"one": "http://127.0.0.1:9"}, clients=[1], number=1, repeats=1)


def test_percentiles() -> None:
    assert (bench._at(0.5, [3, 1, 2]), bench._at(0.95, list(range(1, 101))), bench._at(0.5, [7])) == (2, 95, 7)
    assert math.isnan(bench._at(0.5, [math.nan]))
