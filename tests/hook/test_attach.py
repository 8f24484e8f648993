"""Attaching and detaching: what a model is afterwards, whose facts answer, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fake_snapshot import FakeSnapshot
from helpers.hooked import GAMMA, LAYER, TEXTS, Case, hooks, triples
from neuraldb_faiss.errors import FingerprintError, ModelError, NeuralDBError
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import Shown, attach
from neuraldb_faiss.index import Matcher


def test_detaching_gives_the_same_bits(case: Case) -> None:
    batch = case.padded("right")

    def bits() -> torch.Tensor:
        with torch.no_grad():
            return case.model(**batch).logits

    before = bits()
    with case.attach() as handle:
        assert not torch.equal(bits(), before)
        with handle.disabled():
            with handle.disabled():
                assert torch.equal(bits(), before)
            assert torch.equal(bits(), before)
        assert not torch.equal(bits(), before)
    assert torch.equal(bits(), before)
    handle.remove()
    assert hooks(case.model) == 0
    with pytest.raises(KeyError), case.attach():
        raise KeyError
    assert hooks(case.model) == 0 and torch.equal(bits(), before)


def test_nothing_is_read_or_copied_where_nothing_fires(llama: Case) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    outputs: list[torch.Tensor] = []
    llama.site.module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with llama.attach() as handle, torch.no_grad():
        llama.site.module.register_forward_hook(lambda _m, _a, output: seen.append((outputs[-1], output)))
        llama.model(torch.tensor([llama.ids[2]]))
        assert handle.hits == 0 and llama.snapshot.rows_read == 0 and seen[0][0] is seen[0][1]
        llama.model(torch.tensor([llama.ids[0]]))
        assert handle.hits == llama.snapshot.rows_read > 0 and seen[1][0] is not seen[1][1]


def test_two_handles(case: Case) -> None:
    """At two layers each sees what the other did before it; at one layer they add up."""
    ids = torch.tensor([case.ids[0]])
    other = Case(case.model, case.words, layer=2, seed=1)
    low_fires, high_fires = ([f for f in one.references()[1] if f[0] == 0] for one in (case, other))
    with case.attach() as low, other.attach() as high, torch.no_grad():
        case.model(ids)
        assert triples(low) == low_fires and high.calls == 1
        low.remove()
        high.clear_trace()
        case.model(ids)
        assert triples(high) == high_fires and low.calls == 1 and high.calls == 2
    same = Case(case.model, case.words, seed=2)
    outputs: list[torch.Tensor] = []
    with torch.no_grad():
        for cases in ([], [case], [same], [case, same]):
            handles = [one.attach() for one in cases]
            keep = case.site.module.register_forward_hook(lambda _m, _a, output: outputs.append(output))
            case.model(ids)
            keep.remove()
            for handle in handles:
                handle.remove()
    plain, first, second, both = outputs
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain), atol=1e-5, rtol=1e-5)
    assert hooks(case.model) == 0


def test_an_exception_leaves_nothing_behind(llama: Case) -> None:
    ids, fires = torch.tensor([llama.ids[0]]), [f for f in llama.references()[1] if f[0] == 0]
    with llama.attach() as handle, torch.no_grad():

        def fail(*_: Any) -> None:
            raise RuntimeError("a layer failed")

        bad = llama.site.block.register_forward_pre_hook(fail)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a layer failed"):
                llama.model(ids)
            assert handle._context._stack() == []
        bad.remove()
        worse = llama.model.model.register_forward_pre_hook(fail, prepend=True)
        with pytest.raises(RuntimeError, match="a layer failed"):
            llama.model(ids)
        assert handle._context._stack() == []
        worse.remove()

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        stop = llama.site.block.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llama.model(torch.tensor([llama.ids[1]]))
        stop.remove()
        with pytest.raises(TypeError):
            llama.model(ids, ids, ids, ids, ids, ids, ids, ids, ids, ids, ids, ids, ids, ids)
        llama.model(ids)
        assert triples(handle) == fires and handle._context._stack() == []
    assert hooks(llama.model) == 0


def test_an_attached_model_follows_a_newer_generation(llama: Case) -> None:
    ids = torch.tensor([llama.ids[0]])
    old = llama.snapshot
    live = old.key_entries != 1
    gone = FakeSnapshot(old.stored, old.table, tokens=old.key_tokens, entries=old.key_entries, live=live)
    gone.fact_ids = lambda entry_id: ("new",)  # type: ignore[method-assign]
    with llama.attach(newest=lambda: gone) as handle, torch.no_grad():
        llama.model(ids)
        before = len(handle.trace())
        handle.refresh()
        llama.model(ids)
        assert {fire.entry_id for fire in handle.trace()[:before]} >= {0, 1}
        assert {fire.entry_id for fire in handle.trace()[before:]} == {0}
        assert handle.trace()[0].fact_ids == ("fact0",) and handle.trace()[-1].fact_ids == ("new",)
        handle.refresh(old)
        handle.clear_trace()
        llama.model(ids)
        assert {fire.entry_id for fire in handle.trace()} >= {0, 1}
        with pytest.raises(FingerprintError, match="cannot refresh"):
            handle.refresh(FakeSnapshot(np.ones((1, 3))))
    with llama.attach() as handle, pytest.raises(NeuralDBError, match="pass it a snapshot"):
        handle.refresh()


def test_wrong_models(llama: Case, tiny_llama: tuple[Any, Any]) -> None:
    with pytest.raises(FingerprintError, match="keys of 3 and residuals of 4"):
        attach(PlainGate(Matcher(FakeSnapshot(np.ones((1, 3))), gamma=GAMMA)), llama.model, site=llama.site)
    from helpers.tiny import tiny

    with pytest.raises(ModelError, match="is another model's"):
        attach(PlainGate(llama.matcher()), tiny("llama")[0], site=llama.site)
    with pytest.raises(ModelError, match="is another model's"):
        attach(PlainGate(llama.matcher()), tiny("gpt2")[0], site=llama.site)
    assert hooks(llama.model) == 0


def test_threads_that_share_a_model_fire_as_one_alone(case: Case) -> None:
    logits, fires = case.references()
    wrong: list[str] = []
    with case.attach() as handle:

        def work(text: int) -> None:
            ids = torch.tensor([case.ids[text]])
            with torch.no_grad():
                for turn in range(12):
                    got = case.model(ids).logits[0]
                    if (got - logits[text]).abs().max() > 1e-3:
                        wrong.append(f"text {text}: logits")
                    if turn % 3 == 0 and text == 0:
                        with handle.disabled():
                            case.model(ids)

        threads = [threading.Thread(target=work, args=(i % len(TEXTS),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert handle.calls == 8 * 12 and handle.hits == 24 * len(fires) == len(handle.trace())
        assert triples(handle) == sorted((0, p, e) for _, p, e in fires * 24)


def test_trace_is_bounded_and_names_the_facts_of_its_generation(llama: Case) -> None:
    ids = torch.tensor([llama.ids[0]])
    with llama.attach(shown=Shown(trace_size=3)) as handle, torch.no_grad():
        for _ in range(5):
            llama.model(ids)
        assert len(handle.trace()) == 3 and handle.hits >= 10
        fire = handle.trace()[-1]
        assert fire.fact_ids == (f"fact{fire.entry_id}",) and GAMMA < fire.score <= 1.001


def test_a_handle_names_database_layer_guard_and_counts(llama: Case) -> None:
    with llama.attach(shown=Shown(database="indexes/<demo>")) as handle:
        assert repr(handle) == (
            f"<Handle of indexes/<demo> at layer {LAYER}: guard none, gamma {GAMMA}, 0 calls, 0 hits>"
        )
        assert "<tr><td>database</td><td>indexes/&lt;demo&gt;</td></tr>" in handle._repr_html_()
        with handle.disabled():
            assert f"at layer {LAYER} (disabled):" in repr(handle)
    assert f"at layer {LAYER} (removed):" in repr(handle)
