"""Ways in which an attached model is called: embeddings, packed texts, a layer by itself, pipelines, wrappers."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import pipeline

from helpers.hooked import TEXTS, Case, triples
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import attach


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
