"""On a real GPU: the answers of the CPU, one wait a forward, compiled and cached too. `pytest -m gpu`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from helpers import hooked as plain
from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny
from hook import test_subject_guard as guarded
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import attach
from neuraldb_faiss.hook.residual_cache import ResidualCache
from neuraldb_faiss.index import Matcher, gpu
from neuraldb_faiss.index.device_matcher import decide
from neuraldb_faiss.index.faiss_module import gpu_count
from neuraldb_faiss.research.benchmarks.gpu import count_waits

pytestmark = pytest.mark.gpu
GAMMA = 0.65


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    return torch.device("cuda", 0)


@pytest.fixture
def faiss_gpu(cuda: torch.device) -> int:
    if not gpu_count():
        pytest.skip("FAISS sees no GPU: the extra gpu is not installed")
    return gpu_count()


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def fired(matcher: Matcher, queries: torch.Tensor) -> list[int]:
    n = len(queries)
    candidates = matcher.candidates(queries, lambda: (np.ones(n, bool), np.full(n, -1)))
    winners = decide(candidates, queries, matcher.gamma).fires.cpu().numpy()
    found = np.full(n, -1)
    found[candidates.rows[winners]] = candidates.positions[winners]
    return found.tolist()


def on_cpu(snapshot: FakeSnapshot, queries: torch.Tensor) -> list[int]:
    got = Matcher(snapshot, gamma=GAMMA).match(queries, first_tokens=np.full(len(queries), -1))
    return torch.where(got.fired, got.entry_ids, -1).tolist()


def crowded(d: int, n: int = 5000) -> tuple[FakeSnapshot, torch.Tensor]:
    """Keys of which many differ by less than float16 tells apart, some of them dead, and queries about them."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((30, d))
    keys = centres[rng.integers(30, size=n)] + 3e-3 * rng.standard_normal((n, d))
    keys[: n // 2] = rng.standard_normal((n // 2, d))
    snapshot = FakeSnapshot(keys, live=rng.random(n) < 0.9)
    rows = keys[rng.choice(n, 300)] + rng.uniform(0, 1.4, (300, 1)) * rng.standard_normal((300, d))
    rows[0], rows[1, 3] = 0, np.nan
    return snapshot, torch.from_numpy(rows).float()


@pytest.mark.parametrize("d", [64, 1536, 14336])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_search_answers_as_on_the_cpu(kind: str, d: int, cuda: torch.device, faiss_gpu: int) -> None:
    snapshot, queries = crowded(d)
    settings = {"nlist": 16, "nprobe": 16} if kind == "ivf" else {}
    matcher = Matcher(snapshot, kind, gamma=GAMMA, device=cuda, **settings)
    assert matcher.on_gpu
    want = on_cpu(snapshot, queries)
    assert fired(matcher, queries.to(cuda)) == want and sum(one >= 0 for one in want) > 50
    got = matcher.match(queries)
    assert torch.where(got.fired, got.entry_ids, -1).tolist() == want


def test_several_gpus(cuda: torch.device, faiss_gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if faiss_gpu < 2:
        pytest.skip("one GPU")
    monkeypatch.setattr(gpu, "choose_gpus", lambda device, need: list(range(faiss_gpu)))
    snapshot, queries = crowded(256)
    assert fired(Matcher(snapshot, "flat", gamma=GAMMA, device=cuda), queries.to(cuda)) == on_cpu(snapshot, queries)


def test_two_shards_on_one_gpu(cuda: torch.device, faiss_gpu: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "choose_gpus", lambda device, need: [0, 0])
    snapshot, queries = crowded(256)
    for kind in ("flat", "ivf"):
        settings = {"nlist": 8, "nprobe": 8} if kind == "ivf" else {}
        matcher = Matcher(snapshot, kind, gamma=GAMMA, device=cuda, **settings)
        assert fired(matcher, queries.to(cuda)) == on_cpu(snapshot, queries)


def test_more_equal_keys_than_a_gpu_gives(cuda: torch.device, faiss_gpu: int) -> None:
    keys = np.tile(np.random.default_rng(3).standard_normal((1, 96)), (2600, 1))
    matcher = Matcher(FakeSnapshot(keys, live=np.arange(2600) >= 2500), gamma=GAMMA, device=cuda)
    assert fired(matcher, torch.from_numpy(keys[:3]).float().to(cuda)) == [2500] * 3


def test_refresh_adds(cuda: torch.device, faiss_gpu: int) -> None:
    keys = np.random.default_rng(4).standard_normal((1500, 96))
    queries = torch.from_numpy(keys).float().to(cuda)
    for kind in ("flat", "ivf"):
        settings = {"nlist": 8, "nprobe": 8} if kind == "ivf" else {}
        matcher = Matcher(FakeSnapshot(keys[:1400]), kind, gamma=GAMMA, device=cuda, **settings)
        matcher.refresh(FakeSnapshot(keys))
        assert fired(matcher, queries) == list(range(1500))


class Both:
    """The same case twice, the model on the CPU and on the GPU."""

    def __init__(self, gate: str, cuda: torch.device) -> None:
        self.case: Any = plain.Case(*tiny("llama")) if gate == "plain" else guarded.Case()
        self.gpu = tiny("llama")[0].to(cuda)
        self.site = plain.find_site(self.gpu, plain.LAYER)
        self.batch = {name: rows.to(cuda) for name, rows in self.case.padded("left").items()}
        own = PlainGate(Matcher(self.case.snapshot, gamma=plain.GAMMA, device=cuda)) if gate == "plain" else None
        self.gate = own or self.case.gate()

    def attach(self) -> Any:
        return attach(self.gate, self.gpu, site=self.site)


@pytest.fixture(params=["plain", "subject"])
def both(request: pytest.FixtureRequest, cuda: torch.device, faiss_gpu: int) -> Both:
    return Both(request.param, cuda)


HOW = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate_answers_as_on_the_cpu(both: Both, options: dict[str, Any]) -> None:
    with both.case.attach() as handle:
        want = both.case.model.generate(**both.case.padded("left"), **HOW, **options)
        fires = plain.triples(handle)
    with both.attach() as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = both.gpu.generate(**both.batch, **HOW, **options)
        assert got.cpu().tolist() == want.tolist()
        assert plain.triples(handle) == fires and fires and handle.hits == len(fires)


def test_one_wait_a_forward(both: Both) -> None:
    """The lookup itself never waits but for the one copy that it says; counted by torch and by the profiler."""

    def forward() -> None:
        with torch.no_grad():
            both.gpu(**both.batch, use_cache=False)

    forward()
    without = count_waits(forward)
    with both.attach() as handle:
        find = handle._lookup.find

        def strict(*given: Any) -> Any:
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                return find(*given)
            finally:
                torch.cuda.set_sync_debug_mode(before)

        handle._lookup.find = strict
        forward()
        forward()
        assert count_waits(forward) - without <= 1
        assert handle.hits


def test_compiled_by_inductor(both: Both) -> None:
    torch._dynamo.reset()
    with both.attach() as handle, torch.no_grad():
        want = both.gpu(**both.batch, use_cache=False).logits
        fires = plain.triples(handle)
        handle.clear_trace()
        for mode in ("default", "reduce-overhead"):
            call = torch.compile(both.gpu, fullgraph=True, mode=mode)
            for _ in range(3):
                got = call(**both.batch, use_cache=False).logits
            real = both.batch["attention_mask"].bool()
            torch.testing.assert_close(got[real], want[real], atol=2e-3, rtol=2e-3)
            assert plain.triples(handle) == sorted(fires * 3)
            handle.clear_trace()
    torch._dynamo.reset()


def test_residuals_stay_on_the_gpu(cuda: torch.device) -> None:
    rng = np.random.default_rng(1)
    source = FakeSnapshot(rng.standard_normal((30, 8)), rng.standard_normal((30, 16)))
    cache = ResidualCache(7 * 16 * 4)
    streams = [torch.cuda.current_stream(cuda), torch.cuda.Stream(cuda)]
    for turn in range(100):
        entries = rng.integers(0, 30, rng.integers(1, 12))
        with torch.cuda.stream(streams[turn % 2]):
            got = cache.gather(source, entries, cuda, torch.float32).cpu().numpy()
        np.testing.assert_array_equal(got, source.table[entries])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(both: Both, dtype: torch.dtype) -> None:
    both.gpu.to(dtype)
    with both.attach() as handle, torch.no_grad():
        logits = both.gpu(**both.batch).logits
        assert logits.dtype == dtype and logits.isfinite().all() and handle.hits
