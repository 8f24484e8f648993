"""FFN sites are found by structure, in every supported architecture, or a clear error says what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import D_FFN, D_MODEL, KINDS, N_LAYERS, SEEING_KINDS, tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import sites
from neuraldb_faiss.models.sites import find_attention, find_site, layer_count, projection_shape

# The name in layer 2, where it is not the Llama family's.
LLAMA = "model.layers.2.mlp.down_proj"
MODULES = {
    "gpt2": "transformer.h.2.mlp.c_proj",
    "gptj": "transformer.h.2.mlp.fc_out",
    "gpt_neox": "gpt_neox.layers.2.mlp.dense_4h_to_h",
    "gpt_neo": "transformer.h.2.mlp.c_proj",
    "opt": "model.decoder.layers.2.fc2",
    "phi": "model.layers.2.mlp.fc2",
    "falcon": "transformer.h.2.mlp.dense_4h_to_h",
    "bloom": "transformer.h.2.mlp.dense_4h_to_h",
    "mpt": "transformer.blocks.2.ffn.down_proj",
    "starcoder2": "model.layers.2.mlp.c_proj",
    "codegen": "transformer.h.2.mlp.fc_out",
    "gpt_bigcode": "transformer.h.2.mlp.c_proj",
    "persimmon": "model.layers.2.mlp.dense_4h_to_h",
    "nanochat": "model.layers.2.mlp.fc2",
    "lfm2": "model.layers.2.feed_forward.w2",
    "falcon_h1": "model.layers.2.feed_forward.down_proj",
    "bamba": "model.layers.2.feed_forward.down_proj",
    "llama4_text": "model.layers.2.feed_forward.down_proj",
    "granitemoehybrid": "model.layers.2.shared_mlp.output_linear",
    "biogpt": "biogpt.layers.2.fc2",
    "xglm": "model.layers.2.fc2",
    "modernbert-decoder": "model.layers.2.mlp.Wo",
    "openai-gpt": "transformer.h.2.mlp.c_proj",
    "smolvlm": "model.text_model.layers.2.mlp.down_proj",
    **{kind: "model.language_model.layers.2.mlp.down_proj" for kind in SEEING_KINDS if kind != "smolvlm"},
}
FOUR_TIMES = ("bloom", "mpt", "lfm2", "openai-gpt")  # d1 cannot be set


@pytest.mark.parametrize("kind", [*KINDS, *SEEING_KINDS])
def test_site_is_what_the_forward_pass_runs_through(kind: str) -> None:
    model, tokenizer = tiny(kind)
    site = find_site(model, 2)
    assert site.module_name == MODULES.get(kind, LLAMA)
    assert (site.layer, site.n_layers, site.d2) == (2, N_LAYERS, D_MODEL)
    assert site.d1 == (4 * D_MODEL if kind in FOUR_TIMES else D_FFN)
    assert model.get_submodule(site.module_name) is site.module
    assert model.get_submodule(site.block_name) is site.block

    seen: list[tuple[int, int]] = []
    hook = site.module.register_forward_hook(lambda _, args, out: seen.append((args[0].shape[-1], out.shape[-1])))
    with torch.no_grad():
        model(**tokenizer("Rome is the capital", return_tensors="pt"))
    hook.remove()
    assert seen == [(site.d1, site.d2)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_a_named_module_gives_the_same_site(kind: str) -> None:
    model, _ = tiny(kind)
    found = find_site(model, 3)
    pattern = MODULES.get(kind, LLAMA).replace(".2.", ".{}.")
    named = find_site(model, 3, pattern)
    assert named.module is found.module and named.block is found.block
    for name in ("layer", "n_layers", "d1", "d2", "module_name", "block_name"):
        assert getattr(named, name) == getattr(found, name)
    assert layer_count(model, pattern) == layer_count(model) == N_LAYERS


def test_the_eye_is_not_taken_for_the_text() -> None:
    """A vision encoder of as many layers and as wide as the decoder: both are stacks with an FFN."""
    model, _ = tiny("llava")
    vision = model.model.vision_tower.config
    vision.num_hidden_layers, vision.hidden_size = N_LAYERS, D_MODEL
    vision.intermediate_size, vision.num_attention_heads = D_FFN, 4
    model.model.vision_tower = type(model.model.vision_tower)(vision)
    stacks = [name for name, _ in sites._block_lists(model)]
    assert len(stacks) == 2
    assert find_site(model, 2).module_name == MODULES["llava"]


@pytest.mark.parametrize("kind", [*KINDS, *SEEING_KINDS])
def test_attention_is_what_the_forward_pass_runs_through(kind: str) -> None:
    model, tokenizer = tiny(kind)
    site = find_site(model, 2)
    attention = find_attention(model, site)
    assert model.get_submodule(attention.module_name) is attention.module
    assert attention.module in list(attention.whole.modules())
    seen: list[int] = []
    attention.module.register_forward_hook(lambda _, args, out: seen.append(out.shape[-1]))
    attention.whole.register_forward_hook(lambda *_: seen.append(0))
    with torch.no_grad():
        model(**tokenizer("Rome is the capital", return_tensors="pt"))
    assert seen == [D_MODEL, 0]


def test_first_and_last_layer() -> None:
    model, _ = tiny("gpt2")
    assert find_site(model, 0).block_name == "transformer.h.0"
    assert find_site(model, N_LAYERS - 1).block_name == "transformer.h.3"


@pytest.mark.parametrize("layer", [-1, 4, 99, True, "3", None])
def test_an_unknown_layer_is_refused_with_the_range(layer: int) -> None:
    model, _ = tiny("llama")
    with pytest.raises(ModelError, match=r"layer .* does not exist: this llama model has layers 0 to 3"):
        find_site(model, layer)
    with pytest.raises(ModelError, match="layers 0 to 3"):
        find_site(model, layer, "model.layers.{}.mlp.down_proj")


def test_a_compiled_model_has_the_same_names() -> None:
    model, _ = tiny("llama")
    compiled = torch.compile(model)
    assert find_site(compiled, 1).module_name == "model.layers.1.mlp.down_proj"
    assert find_site(compiled, 1).module is model.model.layers[1].mlp.down_proj


def test_conv1d_and_linear_shapes() -> None:
    model, _ = tiny("gpt2")
    assert tuple(model.transformer.h[0].mlp.c_proj.weight.shape) == (D_FFN, D_MODEL)
    assert projection_shape(model.transformer.h[0].mlp.c_proj) == (D_FFN, D_MODEL)
    assert projection_shape(nn.Linear(7, 3)) == (7, 3)
    assert projection_shape(nn.LayerNorm(3)) is None


def test_a_model_without_an_ffn_is_told_how_to_name_one() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stack = nn.ModuleList(nn.ModuleDict({"out": nn.Linear(8, 4)}) for _ in range(3))

    with pytest.raises(ModelError, match=r"no feed-forward network found .*mlp\.down_proj.*--ffn-module"):
        find_site(Odd(), 0)
    site = find_site(Odd(), 1, "stack.{}.out")
    assert (site.d1, site.d2, site.block_name, site.n_layers) == (8, 4, "stack.1", 3)


def test_a_path_of_the_wrong_shape_does_not_count() -> None:
    model, _ = tiny("llama")
    for block in model.model.layers:
        block.mlp.down_proj = nn.Linear(D_FFN, D_MODEL + 1)
    with pytest.raises(ModelError, match="no feed-forward network"):
        find_site(model, 0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("model.layers.2.mlp.down_proj", "exactly one"),
        ("model.{}.{}.mlp", "exactly one"),
        (
            "model.layers.{}.mlp.nothing",
            r"no module .* linear modules of layer 0 are .*model\.layers\.0\.mlp\.down_proj",
        ),
        ("model.layers.{}.mlp", "not a linear projection"),
    ],
)
def test_a_bad_pattern_is_explained(pattern: str, message: str) -> None:
    model, _ = tiny("llama")
    with pytest.raises(ModelError, match=message):
        find_site(model, 1, pattern)


def test_a_layer_that_lacks_the_named_module() -> None:
    model, _ = tiny("llama")
    model.model.layers[1].mlp.down_proj = nn.Identity()
    del model.model.layers[1].mlp.down_proj
    with pytest.raises(ModelError, match=r"layer 1 has no module .* have it: 0, 2, 3"):
        find_site(model, 1, "model.layers.{}.mlp.down_proj")
    with pytest.raises(ModelError, match=r"model\.layers\.1 .* has no feed-forward network"):
        find_site(model, 1)


def _mixture(dense: list[int]) -> nn.Module:
    config = AutoConfig.for_model(
        "qwen2_moe",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=4,
        mlp_only_layers=dense,
    )
    return AutoModelForCausalLM.from_config(config)


def test_a_mixture_of_experts_is_refused_by_layer() -> None:
    model = _mixture(dense=[0])
    assert layer_count(model) == 3
    assert find_site(model, 0).d1 == 32
    with pytest.raises(ModelError, match=r"model\.layers\.1 .* mixture of experts .*mlp\.experts"):
        find_site(model, 1)
    shared = find_site(model, 1, "model.layers.{}.mlp.shared_expert.down_proj")
    assert (shared.d1, shared.d2, shared.block_name) == (24, 16, "model.layers.1")
    with pytest.raises(ModelError, match="mixture of experts"):
        find_site(_mixture(dense=[]), 2)


def test_an_ffn_that_stands_beside_experts_must_be_named() -> None:
    """Granite's shared FFN runs on every token, and so do its experts: which one holds a fact is not for us to say."""
    config = AutoConfig.for_model(
        "granitemoeshared",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        shared_intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=r"mixture of experts .*block_sparse_moe\.experts.*--ffn-module"):
        find_site(model, 1)
    shared = find_site(model, 1, "model.layers.{}.shared_mlp.output_linear")
    assert (shared.d1, shared.d2) == (24, 16)
