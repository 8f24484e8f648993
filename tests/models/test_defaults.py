"""Known shapes get their settings, whatever the model is called; others get a middle-early layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import tiny
from neuraldb_faiss.models.defaults import EditDefaults, edit_defaults
from neuraldb_faiss.solver.objectives.pmet import Pmet

LLAMA_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
}
SMOLLM2 = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
QWEN_05B = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
GEMMA_270M = {
    "hidden_size": 640,
    "num_hidden_layers": 18,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
}


def _shape(kind: str, **config: Any) -> Any:
    """A model of that shape that takes no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        (
            "gpt2",
            {"n_embd": 1600, "n_layer": 48, "n_head": 25},
            EditDefaults(17, 20, 0.5, 0.5, 0.75, 0.0625),
        ),
        ("gptj", {}, EditDefaults(8, 25, 0.5, 0.5, 0.75, 0.0625)),
        ("llama", LLAMA_8B, EditDefaults(7, 25, 0.1, 0.5, 0.75, 0.0625)),
        ("llama", SMOLLM2, EditDefaults(3, 20, 0.5, 0.5, 0.75, 0.0625)),
        ("qwen2", QWEN_05B, EditDefaults(16, 20, 0.5, 0.5, 0.75, 0.0625)),
        ("gemma3_text", GEMMA_270M, EditDefaults(6, 20, 0.5, 0.5, 0.75, 0.0625)),
    ],
)
def test_known_shapes(kind: str, config: dict[str, Any], expected: EditDefaults) -> None:
    assert edit_defaults(_shape(kind, **config)) == (expected, True)


@pytest.mark.parametrize(
    ("kind", "config", "expected"),
    [
        ("gptj", {}, EditDefaults(8, 30, 0.2, 0.5, 0.75, 1.0)),  # its reference code's
        ("llama", SMOLLM2, EditDefaults(3, 30, 0.5, 0.5, 4.0, 0.0625)),
        ("llama", LLAMA_8B, EditDefaults(7, 30, 0.2, 0.5, 0.75, 1.0)),
    ],
)
def test_known_shapes_for_pmet(kind: str, config: dict[str, Any], expected: EditDefaults) -> None:
    model = _shape(kind, **config)
    assert Pmet().defaults(model) == expected and edit_defaults(model)[1]


def test_another_architecture_of_a_known_size_is_unknown() -> None:
    settings, known = edit_defaults(_shape("mistral", **LLAMA_8B))
    assert not known
    assert (settings.layer, settings.lr, settings.steps) == (6, 0.5, 20)


@pytest.mark.parametrize(("n_layers", "layer"), [(1, 0), (2, 1), (4, 1), (12, 2), (30, 6)])
def test_an_unknown_model_gets_a_layer_a_fifth_of_the_way_up(n_layers: int, layer: int) -> None:
    config = {
        "hidden_size": 8,
        "num_hidden_layers": n_layers,
        "intermediate_size": 16,
        "num_attention_heads": 2,
    }
    settings, known = edit_defaults(_shape("llama", **config, num_key_value_heads=2, vocab_size=16))
    assert (settings.layer, known) == (layer, False)


def test_a_named_module_is_used() -> None:
    model, _ = tiny("llama")
    settings, known = edit_defaults(model, "model.layers.{}.mlp.up_proj")
    assert (settings.layer, known) == (1, False)
