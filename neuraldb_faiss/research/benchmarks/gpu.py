"""What is promised of a GPU, measured: searching keys, a model with and without facts, waits, solving."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neuraldb_faiss.errors import NeuralDBError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.guard.gate import Gate
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.hook import attach
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.index.device_matcher import decide, unit_rows
from neuraldb_faiss.index.faiss_module import load_faiss
from neuraldb_faiss.index.gpu import TEMP_BYTES
from neuraldb_faiss.index.matcher import as_rows
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.research.benchmarks.lookup import decode, prefill, take_turns
from neuraldb_faiss.research.benchmarks.random_model import SHAPES, MemorySource, random_llama, words
from neuraldb_faiss.research.benchmarks.timing import Timing, measure

LAYER = 1
GAMMA = 0.65
SPOKEN = 8  # facts whose subject stands in the prompt
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")  # whole names


def machine(device: torch.device) -> dict[str, Any]:
    """What it ran on: hardware and versions."""
    import platform

    import transformers

    faiss = load_faiss()
    found: dict[str, Any] = {
        "python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda,
        "transformers": transformers.__version__, "faiss": faiss.__version__, "platform": platform.platform(),
        "faiss_gpus": getattr(faiss, "get_num_gpus", lambda: 0)(), "faiss_temp_bytes": TEMP_BYTES,
    }  # fmt: skip
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "gpus": torch.cuda.device_count()}
    return found


class Bench:
    """A random model, a text of its words, and keys taken from that text, on one device."""

    def __init__(self, device: torch.device, *, small: bool, layers: int | None = None) -> None:
        self.device, self.small = device, small
        shape = "small" if small else "llama-3-8b"
        self.d1, self.vocabulary = SHAPES[shape]["intermediate_size"], SHAPES[shape]["vocab_size"]
        self.model, self.tokenizer = random_llama(shape, device, layers=layers), words(self.vocabulary)
        self.site = find_site(self.model, LAYER)
        self.length = 256 if small else 4096
        chance = torch.Generator().manual_seed(2)
        self.ids = torch.randint(1, self.vocabulary, (1, self.length), generator=chance).to(device)
        caught: list[torch.Tensor] = []
        hook = self.site.module.register_forward_hook(lambda _m, args, _o: caught.append(args[0][0]))
        prefill(self.model, self.ids)
        hook.remove()
        self.keys = caught[0]
        places = [4 + 7 * number for number in range(SPOKEN)]
        self.spoken = self.keys[places].float()
        text = self.ids[0].tolist()
        self.names = [f"w{text[place - 1]} w{text[place]}" for place in places]

    def source(self, n: int) -> MemorySource:
        return MemorySource(n, self.d1, self.site.d2, self.spoken, self.names, self.device)

    # ---- searching

    def search(self, source: MemorySource, kind: str, repeats: int) -> dict[str, Any]:
        """Exact answers of 1, 32 and all queries against torch's brute force over half-precision keys, and how many
        rows agree on the nearest key above the gate."""
        began = time.perf_counter()
        matcher = Matcher(source, kind, gamma=GAMMA, device=self.device)
        found: dict[str, Any] = {"keys": source.n_keys, "kind": kind, "open_seconds": round(_since(began), 2)}
        table = torch.from_numpy(source.keys(slice(None))).to(self.device)  # type: ignore[arg-type]
        if self.device.type == "cpu":
            table = table.float()
        for n in (1, 32, self.length):
            queries = self.keys[:n]
            mine = measure(self._timed(partial(_answers, matcher, queries)), repeats=repeats)
            theirs = measure(self._timed(partial(_brute_force, table, queries)), repeats=repeats)
            want, got = _brute_force(table, queries), _answers(matcher, queries)
            found[f"queries_{n}"] = {
                "seconds": mine.to_dict(), "brute_force_seconds": theirs.to_dict(), **_ratio(mine, theirs),
                "fired": int((got >= 0).sum()), "agreeing": int((want == got).sum()), "of": n,
            }  # fmt: skip
        return found

    # ---- in a model

    def gate(self, source: MemorySource, kind: str) -> Gate:
        """kind: "subject", or the index of the plain gate."""
        if kind == "subject":
            plain = partial(Matcher, source, gamma=GAMMA, device=self.device)
            return SubjectGate(SubjectMatcher(source, gamma=GAMMA), Texts.of(self.tokenizer), plain)
        return PlainGate(Matcher(source, kind, gamma=GAMMA, device=self.device))

    def lookup(self, source: MemorySource, kind: str, repeats: int) -> dict[str, Any]:
        """`generate()` at batch 1 and 32 and a prefill, with ÷ without; waits that one decoded token adds."""
        gate = self.gate(source, kind)
        attached = partial(attach, gate, self.model, site=self.site)
        found: dict[str, Any] = {"keys": source.n_keys, "gate": kind}
        found["prefill"] = take_turns(attached, partial(prefill, self.model, self.ids), repeats)
        for batch in (1, 32):
            rows = self.ids[:, :64].expand(batch, -1).contiguous()
            found[f"decode_{batch}"] = take_turns(attached, partial(decode, self.model, rows), repeats)
        found["prefill_tokens"] = self.length
        one = partial(prefill, self.model, self.ids[:, :64])
        without = count_waits(one)
        with attached():
            one()
            found["waits_added_by_a_forward"] = count_waits(one) - without
        if self.device.type == "cuda":
            found["gpu_bytes_peak"] = torch.cuda.max_memory_allocated(self.device)
        return found

    def solve(self, n: int) -> dict[str, Any]:
        """Facts a second for `n` residuals, batched, and for a few of them one at a time."""
        from neuraldb_faiss import build

        facts = [
            Fact(f"w{20 + 3 * k} w{21 + 3 * k}", "{} w5 w6 w7", f"w{22 + 3 * k}", source="random") for k in range(n)
        ]
        found: dict[str, Any] = {"facts": n}
        with tempfile.TemporaryDirectory() as folder:
            single = facts[: max(1, n // 8)]
            for name, batches in (("batched", [facts]), ("one_at_a_time", [[fact] for fact in single])):
                began = time.perf_counter()
                try:
                    for number, batch in enumerate(batches):
                        build(batch, self.model, self.tokenizer, Path(folder) / f"{name}{number}", layer=LAYER).close()
                except NeuralDBError as error:
                    found[f"{name}_error"] = str(error)
                    continue
                found[f"{name}_facts_per_second"] = round(sum(map(len, batches)) / _since(began), 3)
        return found

    def _timed(self, work: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return timed


def count_waits(work: Callable[[], object]) -> int:
    """How often the host waits for the GPU in `work`, by the profiler; 0 without one."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(activities=activities) as seen:
        work()
    return sum(event.count for event in seen.key_averages() if event.key in WAITS)


def _answers(matcher: Matcher, queries: torch.Tensor) -> torch.Tensor:
    """int64 [n] on the CPU: the exact nearest key above the gate, -1 for none."""
    if not matcher.on_gpu:
        got = matcher.match(as_rows(queries))
        return torch.where(got.fired, got.entry_ids, -1)
    rows = len(queries)
    every = torch.ones(rows, dtype=torch.bool).numpy(), torch.full((rows,), -1).numpy()
    candidates = matcher.candidates(queries, lambda: every)
    fires = decide(candidates, queries, matcher.gamma).fires.cpu().numpy()
    answer = torch.full((rows,), -1)
    answer[torch.from_numpy(candidates.rows[fires])] = torch.from_numpy(candidates.positions[fires])
    return answer


def _brute_force(table: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    unit, _ = unit_rows(queries)
    near, at = (unit.to(table.dtype) @ table.T).max(dim=1)
    return torch.where(near.float() > GAMMA, at, -1).cpu()


def _ratio(mine: Timing, theirs: Timing) -> dict[str, float]:
    return {"search_to_brute_force_ratio": round(mine.median / theirs.median, 4)}


def _since(began: float) -> float:
    return time.perf_counter() - began
