"""The hook's way on a GPU, run on the CPU: what other files here prove of the host's way holds for it too, the host
waits once a forward, and the residuals in use stay where they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import fake_gpu
from helpers import hooked as plain
from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny
from hook import test_attach, test_calls, test_reference
from hook import test_subject_guard as guarded
from neuraldb_faiss import Fact, build
from neuraldb_faiss.hook.residual_cache import ResidualCache
from neuraldb_faiss.index import Matcher

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu.install(monkeypatch)
    monkeypatch.setattr(plain, "Matcher", partial(Matcher, device=CPU))


@pytest.fixture
def case() -> plain.Case:
    return plain.Case(*tiny("llama"))


SAME: list[Callable[[plain.Case], None]] = [
    test_reference.test_a_text_gets_its_own_first_token_back_in_the_middle,
    test_attach.test_detaching_gives_the_same_bits, test_attach.test_two_handles,
    test_attach.test_an_exception_leaves_nothing_behind, test_calls.test_embeddings_instead_of_ids,
    test_calls.test_the_layer_called_by_itself, test_calls.test_position_ids_tell_packed_texts_apart,
    test_calls.test_flattened_activations, test_attach.test_trace_is_bounded_and_names_the_facts_of_its_generation,
    test_attach.test_an_attached_model_follows_a_newer_generation,
    test_attach.test_threads_that_share_a_model_fire_as_one_alone, test_calls.test_gradients_flow,
    partial(test_reference.test_one_text_at_a_time, use_cache=True),
    partial(test_reference.test_padding, side="left", positional=False, inner=False),
    partial(test_reference.test_padding, side="right", positional=True, inner=True),
    *(
        partial(test_reference.test_chunked_prefill, side=side, cuts=(1, 2, 3), kind=kind)
        for kind in ("dynamic", "static", "static, square mask") for side in ("left", "none")
    ),
    *(partial(test_reference.test_generate, options=options)
      for options in ({}, {"num_beams": 3}, {"cache_implementation": "static"})),
]  # fmt: skip


@pytest.mark.parametrize("prove", SAME, ids=lambda one: getattr(one, "func", one).__name__)
def test_as_on_the_host(prove: Callable[[plain.Case], None], case: plain.Case) -> None:
    prove(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    test_reference.test_half_precision(tiny("llama"), dtype)


GUARDED: list[Callable[[guarded.Case], None]] = [
    guarded.test_texts_one_by_one,
    *(partial(guarded.test_padded_batches, side=side, guard=guard)
      for side in ("left", "right") for guard in ("subject", "whole-words")),
    *(partial(guarded.test_in_pieces_through_a_cache, sizes=[5, 1, 2, 3] * 20, cache=cache)
      for cache in ("dynamic", "static", "made by the model")),
]  # fmt: skip


@pytest.mark.parametrize("prove", GUARDED, ids=lambda one: getattr(one, "func", one).__name__)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_guarded_as_on_the_host(prove: Callable[[guarded.Case], None], kind: str) -> None:
    prove(guarded.Case(kind))


@pytest.mark.parametrize(
    "prove",
    [
        guarded.test_left_padding_then_decoding, guarded.test_rows_of_a_cache_change_places,
        guarded.test_beam_search_is_as_without_a_cache, guarded.test_without_ids_the_plain_gate_decides,
        guarded.test_packed_texts_are_apart,
    ],
)  # fmt: skip
def test_guarded_as_on_the_host_too(prove: Callable[[], None]) -> None:
    prove()


def test_entries_fire_where_they_are_asked_for(tmp_path: Path) -> None:
    guarded.test_entries_fire_where_they_are_asked_for(tmp_path)


class Unasked(TorchDispatchMode):
    """Fails at operations that make the host wait for a GPU without saying so."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        booleans = [one for one in (args[1] if name in ("index", "index_put_") else ()) if one is not None]
        assert name not in self.WAITING and not any(one.dtype == torch.bool for one in booleans), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("gate", ["plain", "subject"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_the_host_waits_once_a_forward(gate: str, cache: str) -> None:
    """Prefill with padding, and decoding, facts firing or not; reading the trace may wait once more."""
    one: Any = plain.Case(*tiny("llama")) if gate == "plain" else guarded.Case()
    waits: list[int] = []
    with one.attach() as handle, torch.no_grad():
        find = handle._lookup.find

        def watched(*args: Any) -> Any:
            before = fake_gpu.Event.waits
            with Unasked():
                found = find(*args)
            waits.append(fake_gpu.Event.waits - before)
            return found

        handle._lookup.find = watched
        before = fake_gpu.Event.waits
        ids = one.padded("left")
        one.model.generate(
            **ids, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0, cache_implementation=cache
        )
        assert waits == [1] * 8 and fake_gpu.Event.waits - before == 8
        assert handle.hits == len(handle.trace()) > 0 and fake_gpu.Event.waits - before <= 9


def test_outcomes_that_nobody_reads_do_not_pile_up(case: plain.Case) -> None:
    ids = torch.tensor([case.ids[0]])
    with case.attach() as handle, torch.no_grad():
        for _ in range(20):
            case.model(ids)
            assert len(handle._lookup._undecided) <= 1
        assert handle.hits == 20 * len([fire for fire in case.references()[1] if fire[0] == 0])


def test_a_database_is_searched_where_its_layer_runs(tmp_path: Path) -> None:
    model, words = tiny("llama")
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    db = build([fact], model, words, tmp_path / "db", layer=1, guard="none", residual="none")
    gate: Any = db.gate(model, words)
    assert gate._matcher.on_gpu and not db.matcher().on_gpu
    with db.attach(model, words) as handle, torch.no_grad():
        model(**words(fact.text, return_tensors="pt"))
        assert {fire.entry_id for fire in handle.trace()} == {0}


# ---- residuals in use


def table(n: int, seed: int = 0, epoch: int = 0) -> FakeSnapshot:
    rng = np.random.default_rng(seed)
    return FakeSnapshot(rng.standard_normal((n, 8)), rng.standard_normal((n, 16)), epoch=epoch)


def room_for(rows: int, dtype: torch.dtype = torch.float32) -> ResidualCache:
    return ResidualCache(rows * 16 * dtype.itemsize)


def check(cache: ResidualCache, source: FakeSnapshot, entries: list[int], read: int) -> None:
    before = source.rows_read
    got = cache.gather(source, np.array(entries, np.int64), CPU, torch.float32)
    np.testing.assert_array_equal(got.numpy(), source.table[entries])
    assert source.rows_read - before == read


def test_only_what_is_not_there_is_read() -> None:
    source, cache = table(50), room_for(4)
    check(cache, source, [3, 5, 3], read=2)
    check(cache, source, [5, 3, 3, 5], read=0)
    check(cache, source, [7, 5, 9], read=2)
    assert len(cache) == 4
    check(cache, source, [3], read=0)
    check(cache, source, [11, 12], read=2)  # in place of 5 and 7 or 9: 3 was used last
    check(cache, source, [3, 11, 12], read=0)
    assert len(cache) == 4


def test_more_than_fit_are_read_for_once() -> None:
    source, cache = table(50), room_for(4)
    check(cache, source, [1, 2], read=2)
    check(cache, source, [9, 1, 8, 7, 2, 6, 9], read=4)
    check(cache, source, [1, 2], read=0)
    check(cache, source, list(range(4)), read=2)
    check(ResidualCache(0), source, [4, 4], read=1)


def test_random_use_is_never_wrong() -> None:
    rng = np.random.default_rng(1)
    source, cache = table(30), room_for(7)
    for _ in range(300):
        entries = rng.integers(0, 30, rng.integers(1, 12))
        got = cache.gather(source, entries, CPU, torch.float32)
        np.testing.assert_array_equal(got.numpy(), source.table[entries])
        assert len(cache) <= 7


def test_another_epoch_or_dtype_begins_anew() -> None:
    source, cache = table(10), room_for(6)
    check(cache, source, [1, 2], read=2)
    later = table(10)  # the next generation: entries stay what they are
    check(cache, later, [1, 2], read=0)
    compacted = table(10, seed=5, epoch=1)
    check(cache, compacted, [1, 2], read=2)
    half = cache.gather(compacted, np.array([1]), CPU, torch.bfloat16)
    assert torch.equal(half, torch.from_numpy(compacted.table[[1]]).bfloat16())


def test_refresh_to_another_epoch_adds_the_new_residuals(case: plain.Case) -> None:
    old, ids = case.snapshot, torch.tensor([case.ids[0]])
    outputs: list[torch.Tensor] = []
    new = FakeSnapshot(old.stored, -2 * old.table, tokens=old.key_tokens, entries=old.key_entries, epoch=1)
    with torch.no_grad(), case.attach() as handle:
        keep = case.site.module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
        with handle.disabled():
            case.model(ids)
        case.model(ids)
        handle.refresh(new)
        case.model(ids)
        keep.remove()
    base, before, after = outputs
    torch.testing.assert_close(after - base, -2 * (before - base), atol=1e-5, rtol=1e-5)
    assert (before - base).abs().max() > 0.1
