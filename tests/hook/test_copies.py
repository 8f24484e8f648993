"""Copies and pickles of an attached model, and of the caches it fills, hold nothing of the database."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from helpers import hooked as plain
from helpers.tiny import tiny, tiny_tokenizer
from hook import test_subject_guard as guarded
from neuraldb_faiss.hook import kv_history


def saved(one: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(one, buffer)
    assert b"neuraldb" not in buffer.getvalue()
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def pickled(one: Any) -> Any:
    data = pickle.dumps(one)
    assert b"neuraldb" not in data
    return pickle.loads(data)


COPIES = [copy.deepcopy, copy.copy, pickled, saved]


# ---- models


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_copied_model_comes_without_the_database(kind: str, duplicate: Callable[[Any], Any]) -> None:
    case = plain.Case(*tiny(kind))
    other = plain.Case(case.model, case.words, layer=2, seed=1)
    ids = torch.tensor([case.ids[0]])
    case.model.register_forward_hook(_count)
    with torch.no_grad():
        before = case.model(ids).logits
        with case.attach() as handle, other.attach():
            edited = case.model(ids).logits
            made = duplicate(case.model)
            inner = duplicate(case.site.module)
            calls = handle.calls
            if duplicate is not copy.copy:  # its parts are the attached model's own
                assert plain.hooks(made) == 1 and torch.equal(made(ids).logits, before)
                assert made.get_submodule(case.site.module_name).weight is not case.site.module.weight
            assert plain.hooks(inner) == 0 and inner(torch.zeros(1, case.site.d1)).shape == (1, case.site.d2)
            assert handle.calls == calls
            assert torch.equal(case.model(ids).logits, edited) and not torch.equal(edited, before)
        assert torch.equal(case.model(ids).logits, before)
    assert plain.hooks(case.model) == 1
    assert not any("__getstate__" in vars(module) for module in case.model.modules())


def _count(*_: Any) -> None:
    """Somebody else's hook, which a copy keeps."""


def test_a_copy_runs_on_weights_of_its_own() -> None:
    case = plain.Case(*tiny("llama"))
    ids = torch.tensor([case.ids[0]])
    with case.attach(), torch.no_grad():
        made = copy.deepcopy(case.model)
        made.model.layers[1].mlp.down_proj.weight.zero_()
        assert not torch.equal(made(ids).logits, case.model(ids).logits)
        with plain.attach(plain.PlainGate(case.matcher()), made, site=plain.find_site(made, 1)) as handle:
            made(ids)
            assert handle.calls == 1


def test_save_pretrained(tmp_path: Path) -> None:
    case = plain.Case(*tiny("llama"))
    ids = torch.tensor([case.ids[0]])
    with torch.no_grad():
        before = case.model(ids).logits
        with case.attach():
            names = set(case.model.state_dict())
            case.model.save_pretrained(tmp_path)
        assert names == set(case.model.state_dict())
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, before)


def _answer(model: Any, ids: torch.Tensor, answers: Any) -> None:
    with torch.no_grad():
        answers.put(model(ids).logits.numpy())


def test_an_attached_model_goes_to_a_spawned_process() -> None:
    case = plain.Case(*tiny("llama"))
    ids = torch.tensor([case.ids[0]])
    with torch.no_grad():
        before = case.model(ids).logits.numpy()
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    with case.attach():
        process = context.Process(target=_answer, args=(case.model, ids, answers))
        process.start()
    np.testing.assert_allclose(answers.get(timeout=120), before, atol=1e-5)
    process.join()


def test_a_model_with_hooks_of_others_and_peft() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny("llama")[0], config).eval()
    case = plain.Case(wrapped.get_base_model(), tiny_tokenizer())
    ids = torch.tensor([case.ids[0]])
    with torch.no_grad():
        before = wrapped(input_ids=ids).logits
        with case.attach() as handle:
            for duplicate in (copy.deepcopy, pickled, saved):
                made = duplicate(wrapped)
                assert plain.hooks(made) == 0 and torch.equal(made(input_ids=ids).logits, before)
            assert handle.calls == 0


def test_a_compiled_model() -> None:
    torch._dynamo.reset()
    case = plain.Case(*tiny("llama"))
    ids = torch.tensor([case.ids[0]])
    with torch.no_grad():
        before = case.model(ids).logits
        with case.attach():
            case.model.compile(backend="eager")
            case.model(ids)
            assert torch.equal(copy.deepcopy(case.model)(ids).logits, before)
            assert torch.equal(pickled(case.model)(ids).logits, before)
    torch._dynamo.reset()


# ---- caches


def filled(case: Any, kind: str) -> Any:
    cache: Any = DynamicCache(config=case.model.config)
    if kind == "static":
        cache = StaticCache(config=case.model.config, max_cache_len=40)
    case.model(torch.tensor([case.ids[0][:6]]), past_key_values=cache)
    return cache


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("duplicate", [pickled, saved])
def test_a_cache_pickles_as_its_original_class(duplicate: Callable[[Any], Any], kind: str) -> None:
    case = guarded.Case()
    rest = torch.tensor([case.ids[0][6:8]])
    with torch.no_grad():
        classes = [type(layer) for layer in filled(case, kind).layers]
        with case.attach():
            cache = filled(case, kind)
            assert hasattr(cache.layers[0], "_neuraldb_past")
            attached = duplicate(cache)
        for made in (attached, duplicate(cache)):
            assert [type(layer) for layer in made.layers] == classes
            assert not hasattr(made.layers[0], "_neuraldb_past")
            assert made.get_seq_length() == cache.get_seq_length() == 6
            assert torch.equal(made.layers[0].keys, cache.layers[0].keys)
            want = case.model(rest, past_key_values=copy.deepcopy(cache)).logits
            assert torch.equal(case.model(rest, past_key_values=made).logits, want)


def test_what_a_model_returns_is_saved_too() -> None:
    case = guarded.Case()
    with case.attach(), torch.no_grad():
        out = case.model(torch.tensor([case.ids[0]]))
    assert torch.equal(saved(out).logits, out.logits)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copied_cache_knows_its_tokens(duplicate: Callable[[Any], Any]) -> None:
    case = guarded.Case()
    with case.attach(), torch.no_grad():
        cache = filled(case, "dynamic")
        made = copy.copy(cache)
        made.layers = [duplicate(layer) for layer in cache.layers]
        assert isinstance(made.layers[0], type(DynamicCache(config=case.model.config).layers[0]))
        want = kv_history.recall(cache, 1, 6)
        np.testing.assert_array_equal(kv_history.recall(made, 1, 6), want)
        assert want[0].tolist() == case.ids[0][:6]
        made.layers[0].batch_repeat_interleave(2)
        assert len(kv_history.recall(made, 2, 6)) == 2 and len(kv_history.recall(cache, 1, 6)) == 1
        assert cache.layers[0].keys.shape[0] == 1
