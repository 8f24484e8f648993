"""A fingerprint knows its model again in any dtype and wrapping, and no other one."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from helpers.tiny import save_tiny, tiny
from neuraldb_faiss.errors import FingerprintError
from neuraldb_faiss.models.fingerprint import Fingerprint, fingerprint
from neuraldb_faiss.models.sites import find_site


def _of(model: nn.Module, layer: int = 1) -> Fingerprint:
    return fingerprint(model, find_site(model, layer))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_does_not_matter(kind: str, dtype: torch.dtype) -> None:
    model, _ = tiny(kind)
    before = _of(model)
    after = _of(model.to(dtype))
    assert before.matches(after) and after.matches(before)


def test_equal_models_have_equal_fingerprints(tmp_path: object) -> None:
    assert _of(tiny("llama")[0]) == _of(tiny("llama")[0])
    folder = save_tiny(tmp_path / "m")
    assert _of(AutoModelForCausalLM.from_pretrained(folder)) == _of(tiny("llama")[0])


def test_json_and_back() -> None:
    mine = _of(tiny("gpt2")[0])
    text = mine.to_json()
    assert "\n" not in text and len(text) < 20_000
    assert Fingerprint.from_json(text) == mine
    assert Fingerprint.from_json(text).to_json() == text


def test_weights_below_count_and_weights_above_do_not() -> None:
    mine = _of(tiny("llama")[0], layer=1)

    def changed(name: str) -> bool:
        model, _ = tiny("llama")
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
        return not mine.matches(_of(model, layer=1))

    assert changed("model.embed_tokens.weight")
    assert changed("model.layers.0.self_attn.k_proj.weight")
    assert changed("model.layers.0.mlp.down_proj.weight")
    assert changed("model.layers.0.input_layernorm.weight")
    assert changed("model.layers.1.mlp.up_proj.weight")
    assert changed("model.layers.1.mlp.down_proj.weight")
    assert not changed("model.layers.2.mlp.down_proj.weight")
    assert not changed("model.norm.weight")
    assert not changed("lm_head.weight")


def test_a_fine_tuned_model_is_another_one() -> None:
    model, _ = tiny("llama")
    mine = _of(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.003 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    assert not mine.matches(_of(model))


def test_layer_tells_two_databases_of_one_model_apart() -> None:
    model, _ = tiny("llama")
    assert not _of(model, 1).matches(_of(model, 2))
    assert not _of(model).matches(_of(tiny("mistral")[0]))


def test_a_rank_one_edit_of_the_projection_shows() -> None:
    model, _ = tiny("gptj")
    mine = _of(model)
    weight = find_site(model, 1).module.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        weight += 0.02 * torch.outer(torch.ones(weight.shape[0]), torch.ones(weight.shape[1]))
    assert not mine.matches(_of(model))


def test_offloaded_and_quantised_weights_are_left_out() -> None:
    model, _ = tiny("llama")
    mine = _of(model)
    model.model.layers[0].mlp.to("meta")
    fewer = _of(model)
    assert len(fewer.samples) == len(mine.samples) - 3
    assert mine.matches(fewer) and fewer.matches(mine)
    model.to("meta")
    assert not mine.matches(_of(model)), "nothing to compare is no match"


def test_weights_of_a_class_of_their_own_are_left_out() -> None:
    """Quantised weights that call themselves float, as torchao's, and cannot be read element by element."""

    class Packed(torch.Tensor):
        pass

    model, _ = tiny("llama")
    site = find_site(model, 1)
    whole = fingerprint(model, site)
    for block in model.model.layers:
        packed = block.mlp.down_proj.weight.detach().as_subclass(Packed)
        block.mlp.down_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    left = {name for name, _ in fingerprint(model, site).samples}
    missing = {name for name, _ in whole.samples} - left
    assert missing == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    assert whole.matches(fingerprint(model, site))


def test_a_compiled_model_is_the_same_model() -> None:
    model, _ = tiny("llama")
    assert _of(torch.compile(model)) == _of(model)


def test_describe_names_the_model_in_one_short_line() -> None:
    model, _ = tiny("llama")
    mine = _of(model)
    line = mine.describe()
    assert line.startswith("llama, 4 layers, 64/128, vocabulary 400, layer 1, ")
    assert len(line) < 100 and "\n" not in line
    assert line == _of(model).describe() != _of(model, 2).describe()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"samples": 3}', '{"samples": {}, "more": 1}'],
)
def test_a_damaged_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(FingerprintError, match="cannot be read"):
        Fingerprint.from_json(text)


@pytest.mark.parametrize(("field", "value"), [("d1", "128"), ("layer", 1.5), ("model_type", 3), ("d2", None)])
def test_a_field_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    fields = json.loads(_of(tiny("llama")[0]).to_json())
    fields[field] = value
    with pytest.raises(FingerprintError, match=field):
        Fingerprint.from_json(json.dumps(fields))


def test_a_sample_cut_short_does_not_match() -> None:
    mine = _of(tiny("llama")[0])
    name, values = mine.samples[0]
    cut = dataclasses.replace(mine, samples=((name, values[:-1]), *mine.samples[1:]))
    assert not mine.matches(cut)
