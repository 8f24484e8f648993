"""Default layer and settings of an edit, by the model's shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models.sites import find_site, layer_count, model_type


@dataclass(frozen=True, slots=True)
class EditDefaults:
    """Layer to edit and settings of eq. 21: Adam's steps and learning rate, the factor on ‖r‖ / ‖h‖², the
    bound on ‖r‖ in units of ‖h‖ (h: the layer's output at the subject's last token; for PMET its attention's and
    its FFN's own), and the factor on the KL term."""

    layer: int
    steps: int
    lr: float
    weight_decay: float
    clamp: float
    kl_factor: float


Shape = tuple[str, int, int, int]  # model type, hidden size d2, layers, intermediate size d1

_COMMON = EditDefaults(layer=1, steps=20, lr=0.5, weight_decay=0.5, clamp=0.75, kl_factor=0.0625)

# The first three rows are the paper's choice of
# layer (arXiv 2507.18028) with MEMIT's settings (arXiv 2210.07229); the others were measured on CounterFact
# (docs/results/tune-layer).
_KNOWN: dict[Shape | None, EditDefaults] = {
    ("gpt2", 1600, 48, 6400): replace(_COMMON, layer=17),  # GPT-2 XL
    ("gptj", 4096, 28, 16384): replace(_COMMON, layer=8, steps=25),  # GPT-J 6B
    ("llama", 4096, 32, 14336): replace(_COMMON, layer=7, steps=25, lr=0.1),  # Llama 3 and 3.1 8B
    ("llama", 576, 30, 1536): replace(_COMMON, layer=3),  # SmolLM2 135M
    ("qwen2", 896, 24, 4864): replace(_COMMON, layer=16),  # Qwen2.5 0.5B
    ("gemma3_text", 640, 18, 2048): replace(_COMMON, layer=6),  # Gemma 3 270M
}


def edit_defaults(model: nn.Module, ffn_module: str | None = None) -> tuple[EditDefaults, bool]:
    """The settings for ``model``, and whether its shape is a known one.

    An unknown model gets a middle-early layer, a fifth of the way up, where the methods of this family edit;
    it should be checked (``--layer``). Raises ModelError where the model has no layers that could be edited.
    """
    shape = model_shape(model, ffn_module)
    return _KNOWN.get(shape) or replace(_COMMON, layer=early_layer(model, ffn_module)), shape in _KNOWN


def model_shape(model: nn.Module, ffn_module: str | None = None) -> Shape | None:
    """(model type, d2, layers, d1); None where the layer that would be edited by default has no FFN of its own (a
    mixture of experts, say; another one may still be chosen). Raises ModelError where the model has no layers."""
    guess = early_layer(model, ffn_module)
    try:
        site = find_site(model, guess, ffn_module)
    except ModelError:
        return None
    return model_type(model), site.d2, layer_count(model, ffn_module), site.d1


def early_layer(model: nn.Module, ffn_module: str | None = None) -> int:
    """The layer a fifth of the way up, where the methods of this family edit a model that nothing is known of. Raises
    ModelError where it has no layers that could be edited."""
    n_layers = layer_count(model, ffn_module)
    return min(max(1, round(n_layers * 0.2)), n_layers - 1)


def guessed_layer(model: nn.Module, ffn_module: str | None = None) -> str | None:
    """A hint that names the layer taken where none is given and the model's best one is not known, else None."""
    defaults, known = edit_defaults(model, ffn_module)
    if known:
        return None
    return (
        f"no known settings for this model: layer {defaults.layer} of 0 to {layer_count(model, ffn_module) - 1} is"
        " edited. Another may do better: `neuraldb tune-layer` tries several"
    )
