"""The lookup as an operator under torch.compile: one graph, eager's answers, no new code for a refresh."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import StaticCache

from helpers import fake_gpu
from helpers import hooked as plain
from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny
from hook import test_subject_guard as guarded
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import attach
from neuraldb_faiss.index import Matcher

TIGHT = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small(kind: str = "llama") -> Any:
    model, words = tiny(kind)
    model.model.layers = model.model.layers[:2]  # compiling takes its time
    model.config.num_hidden_layers = 2
    return plain.Case(model, words)


def compiled(model: Any, backend: str = "eager") -> tuple[Any, Any]:
    counter = CompileCounterWithBackend(backend)
    return torch.compile(model, backend=counter, fullgraph=True), counter


def operators(counter: Any) -> list[int]:
    """How often the lookup is in each graph."""
    return [sum("neuraldb.lookup" in str(node.target) for node in graph.graph.nodes) for graph in counter.graphs]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_one_graph_answers_as_eager_does(backend: str) -> None:
    case = small()
    logits, fires = case.references()
    batch = case.padded("left")
    with case.attach() as handle, torch.no_grad():
        call, counter = compiled(case.model, backend)
        for _ in range(2):
            got = call(**batch, **plain.numbered_positions(batch["attention_mask"])).logits
            for row, (want, mask) in enumerate(zip(logits, batch["attention_mask"], strict=True)):
                torch.testing.assert_close(got[row][mask.bool()], want, **TIGHT)
        assert plain.triples(handle) == sorted(fires * 2) and handle.calls == 2
        assert counter.frame_count == 1 and operators(counter) == [1]


def test_refresh_and_disabled_need_no_new_code() -> None:
    case = small()
    ids, old = torch.tensor([case.ids[0]]), case.snapshot
    doubled = FakeSnapshot(old.stored, 2 * old.table, tokens=old.key_tokens, entries=old.key_entries)
    with torch.no_grad():
        base = case.model(ids, use_cache=False).logits
        with case.attach() as handle:
            call, counter = compiled(case.model)
            first = call(ids, use_cache=False).logits
            handle.refresh(doubled)
            second = call(ids, use_cache=False).logits
            with handle.disabled():
                assert torch.equal(call(ids, use_cache=False).logits, base)
            assert counter.frame_count == 1
        torch.testing.assert_close(first[0], case.references()[0][0], **TIGHT)
        case.snapshot = doubled
        torch.testing.assert_close(second[0], case.references()[0][0], **TIGHT)
        assert (first - second).abs().max() > 1e-3
        assert torch.equal(call(ids, use_cache=False).logits, base)  # detached, and compiled anew
        assert operators(counter) == [1, 0]


def test_the_plain_gate_with_a_cache_in_one_graph() -> None:
    case = small()
    fires = [(0, position, entry) for text, position, entry in case.references()[1] if text == 1]
    ids = torch.tensor([case.ids[1]])
    with case.attach() as handle, torch.no_grad():
        call, counter = compiled(case.model)
        cache: Any = StaticCache(config=case.model.config, max_cache_len=ids.shape[1])
        for at in range(ids.shape[1]):
            call(ids[:, at : at + 1], past_key_values=cache)
        assert plain.triples(handle) == fires
        assert sum(operators(counter)) == 2  # the static cache's first forward is another code than the rest
        assert handle.calls == ids.shape[1]
        handle.clear_trace()
        past = call(ids[:, :9]).past_key_values  # the model makes the cache
        call(ids[:, 9:], past_key_values=past)
        assert plain.triples(handle) == fires


def test_two_databases_at_one_layer_and_gradients() -> None:
    case = small()
    other = plain.Case(case.model, case.words, seed=2)
    ids = torch.tensor([case.ids[0]])
    with case.attach(), attach(PlainGate(other.matcher()), case.model, site=case.site):
        want = case.model(ids, use_cache=False).logits
        want.sum().backward()
        gradient = case.site.module.weight.grad.clone()
        case.model.zero_grad()
        call, counter = compiled(case.model, "aot_eager")
        got = call(ids, use_cache=False).logits
        torch.testing.assert_close(got, want, **TIGHT)
        got.sum().backward()
        torch.testing.assert_close(case.site.module.weight.grad, gradient, **TIGHT)
        assert operators(counter) == [2]


def test_the_guard_reads_the_text_in_one_graph() -> None:
    case = guarded.Case()
    batch = case.padded("left")
    with case.attach() as handle, torch.no_grad():
        case.model(**batch, use_cache=False)
        want = guarded.traced(handle)
        handle.clear_trace()
        call, counter = compiled(case.model)
        call(**batch, use_cache=False)
        assert guarded.traced(handle) == want and want
        assert operators(counter) == [1]


def test_the_guard_with_a_cache_breaks_the_graph_and_is_right() -> None:
    """What a cache holds is noted on the cache, by Python."""
    case = guarded.Case()
    ids = torch.tensor([case.ids[0]])
    with case.attach() as handle, torch.no_grad():
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(case.model, backend="eager", fullgraph=True)(ids)
        torch._dynamo.reset()
        handle.clear_trace()
        call = torch.compile(case.model, backend="eager")
        past = call(ids[:, :5]).past_key_values
        for at in range(5, ids.shape[1]):
            past = call(ids[:, at : at + 1], past_key_values=past).past_key_values
        assert guarded.traced(handle) == {one for one in case.expected() if one[0] == 0}


@pytest.mark.parametrize("gate", ["plain", "subject"])
def test_on_a_gpu_too(gate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One wait a forward there as well."""
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(plain, "Matcher", partial(Matcher, device=torch.device("cpu")))
    case: Any = small() if gate == "plain" else guarded.Case()
    batch = case.padded("left")
    with case.attach() as handle, torch.no_grad():
        want = case.model(**batch, use_cache=False).logits
        fires = guarded.traced(handle)
        handle.clear_trace()
        call, _ = compiled(case.model)
        before = fake_gpu.Event.waits
        got = call(**batch, use_cache=False).logits
        assert fake_gpu.Event.waits - before == 1
        torch.testing.assert_close(got, want, **TIGHT)
        assert guarded.traced(handle) == fires and fires


def test_the_operator_keeps_its_promises() -> None:
    """Schema, fake and real results alike, no aliasing, gradients: torch's own check."""
    case = small()
    ids = torch.tensor([case.ids[0]])
    keys = torch.from_numpy(np.stack([case.inputs[0]])).float()
    output = torch.randn(1, len(case.ids[0]), case.site.d2, requires_grad=True)
    with case.attach() as handle:
        number = handle._lookup._number
        torch.library.opcheck(
            torch.ops.neuraldb.lookup, (keys, output, ids, None, None, 0, None, list(ids.shape), number),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip
        assert handle.hits
