"""Settings of the weight editors that are known to work, by the model's shape.

Those of GPT-2 XL, GPT-J 6B and Llama 3 8B are the reference codes' (see docs/baselines.md for each one's source);
those of the demo model were chosen on facts outside the test (docs/results/tuning).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from neuraldb_faiss.models import EditDefaults, find_site, layer_count
from neuraldb_faiss.models.defaults import early_layer
from neuraldb_faiss.models.sites import model_type
from neuraldb_faiss.research.baselines.settings import KINDS, Settings, check_method
from neuraldb_faiss.solver.objectives.registry import REGISTRY

_SPREAD = 5  # layers that MEMIT edits in most models

_PMET_WEIGHT = 6000.0  # λ in PMET's repository, for GPT-J 6B
_ROME = {"steps": 20, "lr": 0.5, "weight_decay": 0.5, "clamp": 4.0, "kl_factor": 0.0625}

_GPT2_XL = ("gpt2", 1600, 48, 6400)
_GPTJ_6B = ("gptj", 4096, 28, 16384)
_LLAMA_8B = ("llama", 4096, 32, 14336)
_SMOLLM2 = ("llama", 576, 30, 1536)

# (model type, hidden size d2, layers, intermediate size d1) -> method -> what differs from the common settings
_KNOWN: dict[tuple[str, int, int, int], dict[str, dict[str, Any]]] = {
    _GPT2_XL: {
        "memit": {"layers": range(13, 18), "c0_weight": 20000.0},
        "alphaedit": {"layers": range(13, 18)},
        "pmet": {"layers": range(13, 18)},
        "rome": {"layers": [17]},
        "ft": {"layers": [17]},
    },
    _GPTJ_6B: {
        "memit": {"layers": range(3, 9), "c0_weight": 15000.0},
        "alphaedit": {"layers": range(3, 9)},
        "pmet": {"layers": range(3, 9)},
        "rome": {"layers": [5]},
        "ft": {"layers": [8]},
    },
    _LLAMA_8B: {
        "memit": {"layers": range(4, 9), "c0_weight": 15000.0},
        "alphaedit": {"layers": range(4, 9)},
        "pmet": {"layers": range(4, 9)},
        "rome": {"layers": [5], "steps": 25, "weight_decay": 1e-3},
        "ft": {"layers": [7]},
    },
    _SMOLLM2: {
        "memit": {"layers": range(1, 6), "c0_weight": 150.0},
        "alphaedit": {"layers": range(1, 6), "l2": 1.0},
        "pmet": {"layers": range(3, 6), "c0_weight": 500.0},
        "rome": {"layers": [5]},
        "ft": {"layers": [3], "lr": 0.02, "bound": 0.02},
    },
}


def default_settings(name: str, model: nn.Module) -> Settings:
    """The settings of a method for `model`.

    An unknown model, or one of which only NeuralDB's own layer is known, gets the five layers that end a fifth of the
    way up (ROME and FT: the last of them alone) and λ = 15000 (PMET: 6000). RECT has MEMIT's settings. Raises
    BuildError for an unknown method, ModelError where the model has no layers that could be edited.
    """
    check_method(name)
    common = REGISTRY["pmet" if name == "pmet" else "memit"].load().defaults(model)
    table = _KNOWN.get(_shape(model, common.layer), {})
    chosen = dict(table.get("memit" if name == "rect" else name, {}))
    last = early_layer(model)
    first = last if name in ("rome", "ft") else max(0, last - _SPREAD + 1)
    layers = tuple(chosen.pop("layers", range(first, last + 1)))
    return KINDS[name](layers=layers, **{**_common(name, common), **chosen})


def _common(name: str, defaults: EditDefaults) -> dict[str, Any]:
    if name == "ft":
        return {}
    if name == "rome":
        return _ROME
    solving = {field: getattr(defaults, field) for field in ("steps", "lr", "weight_decay", "clamp", "kl_factor")}
    if name == "alphaedit":
        return solving
    return {**solving, "c0_weight": _PMET_WEIGHT if name == "pmet" else 15000.0}


def _shape(model: nn.Module, layer: int) -> tuple[str, int, int, int]:
    site = find_site(model, layer)
    return model_type(model), site.d2, layer_count(model), site.d1
