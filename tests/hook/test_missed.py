"""A forward in which the lookup did not run is an error; one that was not to reach the layer is none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers import hooked as plain
from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny, tiny_tokenizer
from hook import test_subject_guard as guarded
from neuraldb_faiss import Fact, build
from neuraldb_faiss.errors import ModelError, NeuralDBError
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import find_site

REPLACED = "model.layers.1.mlp.down_proj was replaced after attaching .by a .*merge_and_unload.*remove()"
PASSED = "model.layers.1.mlp.down_proj was not called in this forward.*fused kernel.*remove()"


@pytest.fixture
def case() -> plain.Case:
    return plain.Case(*tiny("llama"))


def ids_of(case: Any) -> torch.Tensor:
    return torch.tensor([case.ids[0]])


def fused(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight)

    return forward


def replace_layer(model: Any) -> None:
    old = model.model.layers[1].mlp.down_proj
    new = nn.Linear(old.in_features, old.out_features, bias=False)
    new.weight = old.weight
    model.model.layers[1].mlp.down_proj = new


def replace_block(model: Any) -> None:
    model.model.layers[1] = tiny("llama")[0].model.layers[1]


def replace_weights_by_a_kernel(model: Any) -> None:
    model.model.layers[1].mlp.forward = fused(model.model.layers[1].mlp)


def take_layers_out(model: Any) -> None:
    model.model.layers = model.model.layers[:1]


CHANGES = [
    (replace_layer, REPLACED),
    (replace_block, REPLACED),
    (replace_weights_by_a_kernel, PASSED),
    (take_layers_out, "model.layers.1.mlp.down_proj was taken out"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_a_forward_past_the_database_is_refused(change: Callable[[Any], None], told: str, case: plain.Case) -> None:
    ids = ids_of(case)
    with case.attach() as handle, torch.no_grad():
        case.model(ids)
        change(case.model)
        for _ in range(2):
            with pytest.raises(ModelError, match=told) as caught:
                case.model(ids)
            assert isinstance(caught.value, NeuralDBError) and "\n" not in str(caught.value)
        with pytest.raises(ModelError, match=told):
            case.model.model(ids)
        with pytest.raises(ModelError, match=told):
            case.model.generate(ids, max_new_tokens=2, pad_token_id=0)
        with handle.disabled():
            case.model(ids)
    case.model(ids)
    assert plain.hooks(case.model) == (change is replace_weights_by_a_kernel)


@pytest.mark.parametrize("how", ["merge_and_unload", "unload"])
@pytest.mark.parametrize("through", ["wrapper", "base"])
def test_peft_that_takes_its_layers_out(how: str, through: str) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["down_proj", "q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(tiny("llama")[0], config).eval()
    base = wrapped.get_base_model()
    case = plain.Case(base, tiny_tokenizer())
    ids = ids_of(case)
    with case.attach() as handle, torch.no_grad():
        (wrapped if through == "wrapper" else base)(input_ids=ids)
        with wrapped.disable_adapter():
            wrapped(input_ids=ids)
        wrapped.merge_adapter()
        wrapped(input_ids=ids)
        assert handle.calls == 3
        after = getattr(wrapped, how)()
        with pytest.raises(ModelError, match=REPLACED):
            after(ids)
    after(ids)
    assert plain.hooks(after) == 0
    with plain.attach(plain.PlainGate(case.matcher()), after, site=find_site(after, 1)) as handle:
        after(ids)
        assert handle.calls == 1


def test_adapters_around_the_hooked_layer_are_none_of_it(case: plain.Case) -> None:
    peft = pytest.importorskip("peft")
    with case.attach() as handle, torch.no_grad():
        config = peft.LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
        wrapped = peft.get_peft_model(case.model, config)
        wrapped(input_ids=ids_of(case))
        wrapped.unload()
        case.model(ids_of(case))
        assert handle.calls == 2


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("change", [replace_layer, replace_weights_by_a_kernel])
def test_compiled_code_too(change: Callable[[Any], None], cached: bool) -> None:
    torch._dynamo.reset()
    case = guarded.Case() if cached else plain.Case(*tiny("llama"))
    ids = ids_of(case)
    with case.attach() as handle, torch.no_grad():
        call = torch.compile(case.model, backend="eager")
        call(ids, use_cache=cached)
        assert handle.calls == 1
        change(case.model)
        for _ in range(2):
            with pytest.raises(ModelError, match="down_proj was"):
                call(ids, use_cache=cached)
        with handle.disabled():
            call(ids, use_cache=cached)
    torch._dynamo.reset()


# ---- what is no error


def test_an_exception_in_the_forward_stays_what_it_is(case: plain.Case) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    early = case.model.model.layers[0].register_forward_hook(stop)
    with case.attach(), torch.no_grad():
        for call in (case.model, case.model.model):
            with pytest.raises(Stop):
                call(ids_of(case))
        early.remove()
        case.model(ids_of(case))


def test_removed_in_the_middle_of_a_forward(case: plain.Case) -> None:
    handle = case.attach()
    case.model.model.layers[0].register_forward_hook(lambda *_: handle.remove())
    case.model(ids_of(case))
    assert handle.calls == 0 and plain.hooks(case.model) == 1


def test_attached_in_the_middle_of_a_forward(case: plain.Case) -> None:
    """The forward that runs in another thread has gone past the layer already."""
    handles: list[Any] = []
    past, attached = threading.Event(), threading.Event()
    failed: list[BaseException] = []

    def pause(*_: Any) -> None:
        past.set()
        assert attached.wait(60)

    def work() -> None:
        try:
            case.model(ids_of(case))
        except BaseException as error:
            failed.append(error)

    spy = case.model.model.layers[2].register_forward_hook(pause)
    thread = threading.Thread(target=work)
    thread.start()
    assert past.wait(60)
    handles.append(case.attach())
    attached.set()
    thread.join()
    spy.remove()
    assert not failed
    case.model(ids_of(case))
    assert handles[0].calls == 1
    handles[0].remove()


@pytest.mark.parametrize("kind", ["early exit", "a smaller model", "prompt lookup"])
def test_assisted_generation(kind: str, case: plain.Case) -> None:
    """An early exit drafts with the model's first layers only."""
    kinds: dict[str, dict[str, Any]] = {
        "early exit": {"assistant_early_exit": 1},
        "a smaller model": {"assistant_model": tiny("llama")[0]},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }
    options = kinds[kind]
    steps = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with case.attach() as handle:
        want = case.model.generate(ids_of(case), **steps)
        calls = handle.calls
        got = case.model.generate(ids_of(case), **steps, **options)
        assert handle.calls > calls and got.tolist() == want.tolist()


def test_layers_that_training_drops() -> None:
    model, words = tiny("opt")
    site, ids = find_site(model, 1), torch.tensor([words("Rome").input_ids])
    snapshot = FakeSnapshot(np.ones((1, site.d1)), np.ones((1, site.d2)))
    model.config.layerdrop = model.model.decoder.layerdrop = 1.0
    with plain.attach(plain.PlainGate(Matcher(snapshot, gamma=0.9)), model, site=site) as handle:
        model(ids)
        model.train()
        model(ids)
        assert handle.calls == 1


# A reentrant checkpoint runs the layer once more in backward, by itself: without the forward's token ids.
@pytest.mark.filterwarnings("ignore:the edited layer runs without token ids")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool, case: plain.Case) -> None:
    case.model.train()
    case.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    case.model.enable_input_require_grads()
    with case.attach() as handle:
        case.model(ids_of(case), output_hidden_states=True).logits.sum().backward()
        assert handle.calls >= 1  # and once more where gradients need it


def test_other_ways_to_call_it(case: plain.Case) -> None:
    ids = ids_of(case)
    with case.attach() as handle, torch.no_grad():
        case.model(ids, output_hidden_states=True, output_attentions=True)
        case.model(ids, return_dict=False)
        case.model.model(ids)
        nn.DataParallel(case.model)(ids)
        torch.func.functional_call(case.model, dict(case.model.named_parameters()), (ids,))
        case.model.get_input_embeddings()(ids)
        assert handle.calls == 5


def test_facts_are_added_while_the_database_is_attached(tmp_path: Path) -> None:
    """What is recorded once stands in for the hooked layer while residuals are solved."""
    model, tokenizer = tiny("llama")
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    other = Fact("Space Needle", "The {} is in", "Paris")
    db = build([fact], model, tokenizer, tmp_path / "db", layer=1, steps=2)
    with db.attach(model, tokenizer):
        db.add([other], model, tokenizer)
    assert len(db) == 2
