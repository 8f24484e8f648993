"""scripts/gpu_check.py and what it measures, at tiny sizes on the CPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers import fake_gpu
from neuraldb_faiss.index import faiss_module, gpu
from neuraldb_faiss.research.benchmarks.gpu import SPOKEN, Bench, count_waits
from neuraldb_faiss.research.benchmarks.random_model import words

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "scripts" / "gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(torch.device("cpu"), small=True)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_search_agrees_with_brute_force(bench: Bench, kind: str) -> None:
    found = bench.search(bench.source(600), kind, 1)
    many = found[f"queries_{bench.length}"]
    assert many["agreeing"] == many["of"] == bench.length and many["fired"] >= SPOKEN
    assert many["search_to_brute_force_ratio"] > 0 and found["queries_1"]["of"] == 1


def test_facts_fire_where_their_subject_stands(bench: Bench) -> None:
    found = bench.lookup(bench.source(300), "subject", 1)
    assert found["prefill"]["hits"] == SPOKEN and found["waits_added_by_a_forward"] == 0
    for part in ("prefill", "decode_1", "decode_32"):
        assert found[part]["ratio"] > 0 and set(found[part]["seconds"]) == {"with", "without"}


def test_the_same_on_a_gpu_by_name(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    many = bench.search(bench.source(600), "flat", 1)[f"queries_{bench.length}"]
    assert many["agreeing"] == bench.length


def test_solving_counts_facts(bench: Bench) -> None:
    found = bench.solve(2)
    assert found["batched_facts_per_second"] > 0 and found["one_at_a_time_facts_per_second"] > 0


def test_text_of_words_is_tokenized_word_by_word() -> None:
    tokenizer = words(500)
    assert tokenizer("w20 w21 w499").input_ids == [20, 21, 499]
    assert tokenizer.decode([20, 21]).strip() == "w20 w21"


def test_counting_waits_without_a_gpu() -> None:
    assert count_waits(lambda: torch.ones(3).sum().item()) == 0


@pytest.mark.parametrize("gpus", [0, 1])
def test_without_a_gpu_it_says_what_is_missing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus == 1)
    assert script.main([str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("gpu_check: ")
    assert ("torch sees no NVIDIA GPU" if gpus == 0 else "FAISS sees no GPU") in said[0]
    assert not (tmp_path / "out").exists()


def test_the_report_is_kept_when_a_part_fails(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neuraldb_faiss.research.benchmarks import gpu as measured

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(measured.Bench, "lookup", fail)
    monkeypatch.setattr(measured.Bench, "solve", lambda self, n: {"facts": n})
    given = [str(tmp_path), "--device", "cpu", "--small", "--repeats", "1", "--keys", "300", "--no-tests"]
    assert script.main(given) == 1
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert report["solve"] == {"facts": 2} and report["search_flat_300"]["keys"] == 300
    assert {one["part"] for one in report["failed"]} == {"lookup_flat_300", "lookup_ivf_300", "lookup_subject_300"}
    assert report["machine"]["torch"] == torch.__version__ and report["date"] and report["small"]
    assert report["machine"]["faiss_temp_bytes"] == gpu.TEMP_BYTES and faiss_module.gpu_count() == 0
