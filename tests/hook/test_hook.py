"""The hook against a plain reference: one text at a time, no padding, no cache, NumPy in float64."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache, pipeline

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.errors import FingerprintError, ModelError, NeuralDBError
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import Handle, Shown, attach
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import find_site

TEXTS = (
    "Rome is the capital of Italy.",
    "I think that the Eiffel Tower is located in the city of Paris, and Berlin is in Germany.",
    "LeBron James plays",
    "You know that Marie Curie was born in Warsaw.",
)
LAYER = 1
GAMMA = 0.9
Triple = tuple[int, int, int]  # text, position, entry


class Case:
    """A model with facts at three later tokens of the texts and at the first token of text 0."""

    def __init__(self, model: Any, words: Any, layer: int = LAYER, seed: int = 0) -> None:
        self.model, self.words, self.site = model, words, find_site(model, layer)
        self.ids = [words(text).input_ids for text in TEXTS]
        self.inputs = [self.plain_keys(ids) for ids in self.ids]
        places = [(0, 0), (0, 4), (1, 7), (3, 5)]
        keys = np.stack([self.inputs[text][position] for text, position in places])
        tokens = [self.ids[0][0], -1, -1, -1]
        residuals = np.random.default_rng(seed).standard_normal((len(places), self.site.d2)) * 3
        # A key a little off its token's, as a mean over prefixes is.
        keys = np.concatenate([keys, keys[1:2] + 0.2 * keys[1:2, ::-1]])
        self.snapshot = FakeSnapshot(keys, residuals, tokens=[*tokens, -1], entries=[0, 1, 2, 3, 1])

    def plain_keys(self, ids: Sequence[int]) -> np.ndarray:
        seen: list[torch.Tensor] = []
        hook = self.site.module.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
        with torch.no_grad():
            self.model(torch.tensor([ids]))
        hook.remove()
        return seen[0][0].double().numpy()

    def matcher(self, **options: Any) -> Matcher:
        return Matcher(self.snapshot, gamma=GAMMA, **options)

    def attach(self, **options: Any) -> Handle:
        return attach(PlainGate(self.matcher()), self.model, site=self.site, **options)

    def reference(self, ids: Sequence[int]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Logits [T, V] and (position, entry) of what fires in one text, by the formulas, no code of ours."""
        fires: list[tuple[int, int]] = []

        def hook(_module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            output, keys = output.clone(), self.snapshot.stored.astype(np.float64)
            fires.clear()
            for t, key in enumerate(args[0][0].double().numpy()):
                cosines = keys @ key / np.linalg.norm(keys, axis=1) / np.linalg.norm(key)
                cosines[self.snapshot.key_tokens != (ids[t] if t == 0 else -1)] = -1
                if cosines.max() > GAMMA:
                    entry = int(self.snapshot.key_entries[cosines.argmax()])
                    output[0, t] += torch.from_numpy(self.snapshot.table[entry])
                    fires.append((t, entry))
            return output

        registered = self.site.module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                return self.model(torch.tensor([ids]), use_cache=False).logits[0], fires
        finally:
            registered.remove()

    def references(self) -> tuple[list[torch.Tensor], list[Triple]]:
        found = [self.reference(ids) for ids in self.ids]
        fires = [(i, *fire) for i, (_, fires) in enumerate(found) for fire in fires]
        return [logits for logits, _ in found], fires

    def padded(self, side: str) -> dict[str, torch.Tensor]:
        width = max(map(len, self.ids)) + 2
        # The padding token is a text's first token too: padding must not count even where ids look right.
        pad = self.ids[0][0]
        rows, masks = [], []
        for ids in self.ids:
            gap, ones = [pad] * (width - len(ids)), [1] * len(ids)
            rows.append(ids + gap if side == "right" else gap + ids)
            masks.append(ones + [0] * len(gap) if side == "right" else [0] * len(gap) + ones)
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


@pytest.fixture
def case(tiny_shape: tuple[Any, Any]) -> Case:
    return Case(*tiny_shape)


@pytest.fixture
def llama(tiny_llama: tuple[Any, Any]) -> Case:
    return Case(*tiny_llama)


def triples(handle: Handle) -> list[Triple]:
    return sorted((fire.sequence, fire.position, fire.entry_id) for fire in handle.trace())


def numbered_positions(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def test_the_reference_is_worth_something(case: Case) -> None:
    logits, fires = case.references()
    assert set(fires) >= {(0, 0, 0), (0, 4, 1), (1, 7, 2), (3, 5, 3)}
    assert not any(position == 0 and text != 0 for text, position, _ in fires)
    with torch.no_grad():
        assert (case.model(torch.tensor([case.ids[0]])).logits[0] - logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("use_cache", [True, False])
def test_one_text_at_a_time(case: Case, use_cache: bool) -> None:
    logits, fires = case.references()
    for i, ids in enumerate(case.ids):
        with case.attach() as handle, torch.no_grad():
            got = case.model(torch.tensor([ids]), use_cache=use_cache).logits[0]
            torch.testing.assert_close(got, logits[i], atol=1e-4, rtol=1e-4)
            assert [(i, *rest) for _, *rest in triples(handle)] == [f for f in fires if f[0] == i]
            assert handle.calls == 1 and handle.hits == len(handle.trace())


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(case: Case, side: str, positional: bool, inner: bool) -> None:
    logits, fires = case.references()
    batch = case.padded(side)
    numbers = numbered_positions(batch["attention_mask"])
    with case.attach() as handle, torch.no_grad():
        if inner:
            hidden = case.model.base_model(**batch, **numbers).last_hidden_state
            got = case.model.get_output_embeddings()(hidden)
        elif positional:
            got = case.model(batch["input_ids"], attention_mask=batch["attention_mask"], **numbers).logits
        else:
            got = case.model(**batch, **numbers).logits
        assert triples(handle) == fires
    for row, (want, mask) in enumerate(zip(logits, batch["attention_mask"], strict=True)):
        torch.testing.assert_close(got[row][mask.bool()], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "static", "static, square mask"])
@pytest.mark.parametrize("cuts", [(5,), (1, 2, 3), (9, 10)])
@pytest.mark.parametrize("side", ["left", "none"])
def test_chunked_prefill(case: Case, side: str, cuts: tuple[int, ...], kind: str) -> None:
    _, fires = case.references()
    batch = case.padded("left")
    if side == "none":
        batch = {"input_ids": torch.tensor([case.ids[1]])}
        fires = [(0, position, entry) for text, position, entry in fires if text == 1]
    ids = batch["input_ids"]
    length = ids.shape[1]
    cache: Any = DynamicCache(config=case.model.config)
    if kind != "dynamic":
        cache = StaticCache(config=case.model.config, max_cache_len=length + 4)
    mask = batch.get("attention_mask")
    with case.attach() as handle, torch.no_grad():
        for start, stop in zip((0, *cuts), (*cuts, length), strict=True):
            given: dict[str, Any] = {}
            if mask is not None:
                numbers = numbered_positions(mask)
                given = {key: rows[:, start:stop] for key, rows in numbers.items()}
                given["attention_mask"] = mask[:, :stop]
            if kind == "static, square mask":
                row = torch.ones_like(ids) if mask is None else mask
                column = torch.arange(length + 4)
                real = torch.nn.functional.pad(row, (0, 4)).bool()
                causal = column[None, :] <= torch.arange(start, stop)[:, None]
                seen = (causal[None] & real[:, None])[:, None]
                if case.model.config._attn_implementation == "eager":  # it adds the mask
                    seen = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
                given["attention_mask"] = seen
            case.model(ids[:, start:stop], past_key_values=cache, use_cache=True, **given)
        assert triples(handle) == fires


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate(case: Case, options: dict[str, Any]) -> None:
    batch = case.padded("left")
    steps = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone, fired = [], []
    with case.attach() as handle:
        for ids in case.ids:
            alone.append(case.model.generate(torch.tensor([ids]), **steps, **options)[0, len(ids) :])
            fired.append({(fire.position, fire.entry_id) for fire in handle.trace()})
            handle.clear_trace()
            assert handle.trace() == []
        got = case.model.generate(**batch, **steps, **options)[:, batch["input_ids"].shape[1] :]
        for row, want in enumerate(alone):
            assert got[row].tolist() == want.tolist()
            if "num_beams" not in options:
                mine = {(fire.position, fire.entry_id) for fire in handle.trace() if fire.sequence == row}
                assert mine == fired[row]
    assert (0, 0) in fired[0] and all((0, 0) not in others for others in fired[1:])


def test_a_text_gets_its_own_first_token_back_in_the_middle(llama: Case) -> None:
    """The key of position 0 belongs to position 0: the same token later does not fire it."""
    first = llama.ids[0][0]
    with llama.attach() as handle, torch.no_grad():
        llama.model(torch.tensor([[llama.ids[1][0], first, first]]))
        assert all(fire.entry_id != 0 for fire in handle.trace())
        llama.model(torch.tensor([[first, first]]))
        assert [fire.position for fire in handle.trace() if fire.entry_id == 0] == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_shape: tuple[Any, Any], dtype: torch.dtype) -> None:
    case = Case(*tiny_shape)
    case.model.to(dtype)
    _, fires = Case(case.model, case.words).references()
    batch = case.padded("left")
    with case.attach() as handle, torch.no_grad():
        logits = case.model(**batch, **numbered_positions(batch["attention_mask"])).logits
        assert logits.dtype == dtype
        assert {(0, 0, 0), (0, 4, 1), (1, 7, 2), (3, 5, 3)} <= set(triples(handle))
        assert set(triples(handle)) == set(fires)


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


def hooks(model: nn.Module) -> int:
    """Hooks, and forwards put over the class's own, in the whole model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())


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


def test_embeddings_instead_of_ids(case: Case) -> None:
    _, fires = case.references()
    embeds = case.model.get_input_embeddings()(torch.tensor([case.ids[0]]))
    with case.attach() as handle, torch.no_grad():
        with pytest.warns(UserWarning, match="without token ids") as caught:
            case.model(inputs_embeds=embeds)
            case.model(inputs_embeds=embeds)
        assert len([w for w in caught if "without token ids" in str(w.message)]) == 1
        want = [f for f in fires if f[0] == 0 and f[1] != 0]
        assert triples(handle) == sorted(want * 2)


def test_the_layer_called_by_itself(llama: Case) -> None:
    keys = torch.from_numpy(llama.inputs[0]).float()
    with llama.attach() as handle, torch.no_grad(), pytest.warns(UserWarning, match="without token ids"):
        llama.site.module(keys)
        llama.site.module(keys[None])
        assert handle.calls == 2 and {p for _, p, _ in triples(handle)} == {
            p for t, p, _ in llama.references()[1] if t == 0 and p != 0
        }


def test_position_ids_tell_packed_texts_apart(llama: Case) -> None:
    first = llama.ids[0][0]
    ids, positions = torch.tensor([[5, first, first, 9]]), torch.tensor([[0, 0, 1, 2]])
    calls: list[Any] = []
    with llama.attach() as handle, torch.no_grad():
        spy = llama.site.module.register_forward_hook(
            lambda _m, args, _o: calls.append(handle._context.tokens(args[0].shape[:-1]))
        )
        llama.model(ids, position_ids=positions, use_cache=False)
        spy.remove()
    assert calls[0].first_tokens().tolist() == [[5, first, -1, -1]]


def test_flattened_activations(llama: Case) -> None:
    """Some models flatten batch and length before the FFN."""
    _, fires = llama.references()
    mlp = llama.site.block.mlp
    inside = mlp.forward
    mlp.forward = lambda x: inside(x.reshape(-1, x.shape[-1])).reshape(x.shape)
    with llama.attach() as handle, torch.no_grad():
        llama.model(**llama.padded("left"))
        assert triples(handle) == fires


def test_trace_is_bounded_and_names_the_facts_of_its_generation(llama: Case) -> None:
    ids = torch.tensor([llama.ids[0]])
    with llama.attach(shown=Shown(trace_size=3)) as handle, torch.no_grad():
        for _ in range(5):
            llama.model(ids)
        assert len(handle.trace()) == 3 and handle.hits >= 10
        fire = handle.trace()[-1]
        assert fire.fact_ids == (f"fact{fire.entry_id}",) and GAMMA < fire.score <= 1.001


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


def test_pipeline(llama: Case) -> None:
    generator = pipeline("text-generation", model=llama.model, tokenizer=llama.words)
    options = {"max_new_tokens": 4, "do_sample": False, "return_full_text": False}
    want = llama.references()[1]
    with llama.attach() as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        alone = [generator(text, **options)[0]["generated_text"] for text in TEXTS]
        handle.clear_trace()
        llama.words.padding_side = "left"
        together = generator(list(TEXTS), batch_size=4, **options)
        assert [row[0]["generated_text"] for row in together] == alone
        assert {t for t in triples(handle) if t[1] < len(llama.ids[t[0]])} == set(want)


def test_device_map_hooks(llama: Case) -> None:
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules

    _, fires = llama.references()
    for module in llama.model.modules():
        add_hook_to_module(module, AlignDevicesHook("cpu", io_same_device=True))
    theirs = llama.site.module.forward
    with llama.attach() as handle, torch.no_grad():
        llama.model(**llama.padded("left"))
        llama.model(llama.padded("left")["input_ids"], llama.padded("left")["attention_mask"])
        assert triples(handle) == sorted(fires * 2)
    assert llama.site.module.forward is theirs
    late = llama.attach()
    remove_hook_from_submodules(llama.model)
    late.remove()
    assert not llama.site.module._forward_hooks
    assert not hasattr(llama.site.module.forward, "_neuraldb_handles")


def test_gradients_flow(llama: Case) -> None:
    with llama.attach() as handle:
        logits = llama.model(torch.tensor([llama.ids[0]])).logits
        logits.sum().backward()
        assert handle.hits and llama.site.module.weight.grad is not None


@pytest.mark.parametrize("how", ["in place", "attach to the wrapper", "a function around it"])
def test_after_torch_compile(how: str) -> None:
    from helpers.tiny import tiny

    model: Any
    model, words = tiny("llama")
    model.model.layers = model.model.layers[:2]  # compiling takes its time
    model.config.num_hidden_layers = 2
    case = Case(model, words)
    logits, fires = case.references()
    torch._dynamo.reset()
    call: Any = case.model
    if how == "in place":
        case.model.compile(backend="eager")
    elif how == "a function around it":

        def around(ids: Tensor) -> Any:
            return case.model(ids, use_cache=False)

        call = torch.compile(around, backend="eager")
    else:
        call = torch.compile(case.model, backend="eager")
    ids = torch.tensor([case.ids[0]])
    with torch.no_grad():
        before = call(ids).logits
        target = call if how == "attach to the wrapper" else case.model
        with attach(PlainGate(case.matcher()), target, site=case.site) as handle:
            for _ in range(2):
                got = call(ids).logits[0]
                torch.testing.assert_close(got, logits[0], atol=1e-4, rtol=1e-4)
            assert triples(handle) == sorted([f for f in fires if f[0] == 0] * 2)
        assert torch.equal(call(ids).logits, before)
    torch._dynamo.reset()


def test_compiled_in_another_thread_beside_another_model() -> None:
    """Code compiled for a like model without hooks must not serve this one, whichever thread compiles it."""
    from helpers.tiny import tiny

    case, other = Case(*tiny("llama")), tiny("llama")[0]
    ids = torch.tensor([case.ids[0]])
    torch._dynamo.reset()
    seen: list[int] = []

    def work() -> None:
        with torch.no_grad():
            torch.compile(lambda: other(ids, use_cache=False), backend="eager")()
            torch.compile(lambda: case.model(ids, use_cache=False), backend="eager")()
        seen.append(handle.hits)

    with case.attach() as handle:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [len([fire for fire in case.references()[1] if fire[0] == 0])]
    torch._dynamo.reset()


def test_a_handle_names_database_layer_guard_and_counts(llama: Case) -> None:
    with llama.attach(shown=Shown(database="indexes/<demo>")) as handle:
        assert repr(handle) == (
            f"<Handle of indexes/<demo> at layer {LAYER}: guard none, gamma {GAMMA}, 0 calls, 0 hits>"
        )
        assert "<tr><td>database</td><td>indexes/&lt;demo&gt;</td></tr>" in handle._repr_html_()
        with handle.disabled():
            assert f"at layer {LAYER} (disabled):" in repr(handle)
    assert f"at layer {LAYER} (removed):" in repr(handle)
