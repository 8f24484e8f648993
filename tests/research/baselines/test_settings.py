"""The settings of known shapes are those of the reference codes; others get a guess; a light import knows the names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from helpers.tiny import tiny
from neuraldb_faiss.config import SAMPLED
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.research.baselines import METHODS, default_settings
from neuraldb_faiss.research.baselines.settings import AlphaEdit, with_changes

ROOT = Path(__file__).resolve().parents[3]
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gpt-j": ("gptj", {}),
    "llama3-8b": (
        "llama",
        {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_key_value_heads": 8},
    ),
    "qwen2.5-0.5b": (
        "qwen2",
        {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
        },
    ),
    "smollm2": (
        "llama",
        {
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "intermediate_size": 1536,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
        },
    ),
}


def shaped(name: str) -> Any:
    kind, config = SHAPES[name]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))


@pytest.mark.parametrize(
    ("model", "layers", "weight", "steps", "lr", "rome"),
    [
        ("gpt2-xl", (13, 14, 15, 16, 17), 20000, 20, 0.5, 17),
        ("gpt-j", (3, 4, 5, 6, 7, 8), 15000, 25, 0.5, 5),
        ("llama3-8b", (4, 5, 6, 7, 8), 15000, 25, 0.1, 5),
    ],
)
def test_reference_settings(
    model: str, layers: tuple[int, ...], weight: float, steps: int, lr: float, rome: int
) -> None:
    made = {name: default_settings(name, shaped(model)) for name in METHODS}
    solver = {"steps": steps, "lr": lr, "weight_decay": 0.5, "clamp": 0.75, "kl_factor": 0.0625, "stop_loss": 0.05,
              "optimizer": "adam"}  # fmt: skip
    assert vars(made["memit"]) == {"layers": layers, "c0_weight": weight, **solver}
    assert vars(made["rect"]) == {**vars(made["memit"]), "keep": 0.4}
    assert vars(made["alphaedit"]) == {"layers": layers, "null_threshold": 2e-2, "l2": 10, **solver}
    pmet = {**solver, "steps": 30, "lr": 0.2, "kl_factor": 1.0}
    assert vars(made["pmet"]) == {"layers": layers, "c0_weight": 6000, **pmet}
    assert vars(made["rome"])["layers"] == (rome,) and vars(made["rome"])["clamp"] == 4
    assert vars(made["ft"])["bound"] == 5e-4 and len(made["ft"].layers) == 1


def test_the_demo_model_is_known() -> None:
    model = shaped("smollm2")
    for name in METHODS:
        settings = default_settings(name, model)
        assert settings.layers[0] >= 0 and settings.layers[-1] < 15
    assert vars(default_settings("memit", model))["c0_weight"] < 15000


def test_the_demo_models_settings_are_those_the_recorded_search_chose() -> None:
    records = [json.loads(file.read_text()) for file in (ROOT / "docs" / "results" / "tuning").glob("*.json")]
    assert {name for record in records for name in record["chosen"]} == set(METHODS)
    model = shaped("smollm2")
    for record, name, chosen in ((one, name, chosen) for one in records for name, chosen in one["chosen"].items()):
        settings = json.loads(json.dumps(vars(default_settings(name, model))))
        assert {**settings, **chosen} == settings
        best = max((one for one in record["tried"] if one["method"] == name), key=lambda one: one["score"])
        assert best["settings"] == chosen


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_unknown_model_gets_a_guess(kind: str) -> None:
    model, _ = tiny(kind)
    assert default_settings("memit", model).layers == (0, 1)
    assert default_settings("rome", model).layers == default_settings("ft", model).layers == (1,)


def test_where_only_neuraldbs_layer_is_known_editors_begin_early() -> None:
    model = shaped("qwen2.5-0.5b")
    assert default_settings("memit", model).layers == (1, 2, 3, 4, 5)
    assert default_settings("rome", model).layers == default_settings("ft", model).layers == (5,)


def test_sampled_steps_come_with_their_own_numbers() -> None:
    settings = default_settings("alphaedit", tiny("llama")[0])
    changed = with_changes("alphaedit", settings, {"optimizer": "sampled", "steps": 8})
    assert isinstance(changed, AlphaEdit)
    assert (changed.steps, changed.lr, changed.stop_loss) == (8, SAMPLED["lr"], SAMPLED["stop_loss"])
    assert with_changes("alphaedit", changed, {"optimizer": None}) == changed


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(BuildError, match="unknown method 'melo'"):
        default_settings("melo", tiny("llama")[0])


def test_the_methods_are_named_without_loading_anything() -> None:
    code = (
        "import sys; from neuraldb_faiss.research.baselines import METHODS;"
        "import neuraldb_faiss.cli.commands.statistics;"
        "print(METHODS); assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "'memit', 'alphaedit', 'rect', 'pmet', 'rome', 'ft'" in done.stdout, done.stderr


def test_public_names_resolve() -> None:
    import neuraldb_faiss.research.baselines as room

    for name in room.__all__:
        assert getattr(room, name) is not None and name in dir(room)
    with pytest.raises(AttributeError):
        _ = room.mend
