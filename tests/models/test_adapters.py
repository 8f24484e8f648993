"""Whatever PEFT adds at or below the edited layer makes another model, and what it adds above does not."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny import D_MODEL, tiny, tiny_tokenizer
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.errors import FingerprintError, ModelError
from neuraldb_faiss.models import adapters, find_site
from neuraldb_faiss.models.fingerprint import Fingerprint, fingerprint
from neuraldb_faiss.models.identity import check_model

peft = pytest.importorskip("peft")
mapping = pytest.importorskip("peft.mapping")

LAYER = 1
FACT = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
BLOCKS = {"llama": r"model\.layers", "gpt2": r"transformer\.h"}
LINEAR = {"llama": r"(self_attn\.q_proj|mlp\.down_proj)", "gpt2": r"(attn\.c_attn|mlp\.c_proj)"}
NORMS = {"llama": "(input_layernorm|post_attention_layernorm)", "gpt2": "(ln_1|ln_2)"}
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte"}
PROMPTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"}
EVERYWHERE = PROMPTS | {"TRAINABLE_TOKENS"}  # they begin in front of the first layer
MORE: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 3},
    "C3A": {"block_size": 32},
    "CPT": {"cpt_token_ids": [3, 4, 5], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6, 7]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "topk": 2},
}
# What takes layers of GPT-2's kind (Conv1D), as far as PEFT goes.
ON_GPT2 = [
    "LORA", "ADALORA", "ADAPTION_PROMPT", "FOURIERFT", "GRALORA", "HIRA", "IA3", "LN_TUNING", "PVERA", "RANDLORA",
    "TINYLORA", "UNILORA", "VBLORA", "VERA", "WAVEFT", *sorted(PROMPTS),
]  # fmt: skip
TYPES = [one.name for one in mapping.PEFT_TYPE_TO_CONFIG_MAPPING if one.name != "XLORA"]
CASES = [("llama", one) for one in TYPES] + [("gpt2", one) for one in ON_GPT2]


def wrap(kind: str, name: str, layers: str = "[01]", model: Any = None, **more: Any) -> Any:
    """The tiny model under an adapter of this type in these layers, changed as training it would."""
    made = mapping.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[name]]
    known = inspect.signature(made).parameters
    options = {**MORE.get(name, {}), **more}
    if "target_modules" in known and name != "ADAPTION_PROMPT":
        linear = NORMS[kind] if name == "LN_TUNING" else LINEAR[kind]
        options.setdefault("target_modules", rf".*{BLOCKS[kind]}\.{layers}\.{linear}")
    if name == "TRAINABLE_TOKENS":
        options["target_modules"] = [EMBEDDING[kind]]
    if name == "IA3":
        options["feedforward_modules"] = r".*mlp\.(down_proj|c_proj)"
    if name == "ADAPTION_PROMPT":
        options["adapter_layers"] = 3 if layers == "[01]" else 2  # the uppermost of four
    if "num_virtual_tokens" in known and name != "CPT":
        options["num_virtual_tokens"] = 3
    torch.manual_seed(3)
    wrapped = peft.get_peft_model(model or tiny(kind)[0], made(task_type="CAUSAL_LM", **options)).eval()
    train(wrapped)
    return wrapped


def train(wrapped: Any, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.copy_(torch.randn(weight.shape, generator=generator))


def of(model: Any) -> Fingerprint:
    return fingerprint(model, find_site(model, LAYER))


@cache
def plain(kind: str) -> Fingerprint:
    return of(tiny(kind)[0])


def trained(wrapped: Any) -> dict[str, torch.Tensor]:
    """An adapter's weights, those above the layer left out."""
    above = [f".{stack}.{layer}." for stack in ("layers", "h") for layer in (2, 3)]
    return {
        name: weight for name, weight in wrapped.named_parameters()
        if weight.requires_grad and "lm_head" not in name and not any(part in name for part in above)
    }  # fmt: skip


def differ(one: Fingerprint, other: Fingerprint) -> bool:
    assert one.matches(other) == other.matches(one)
    return not one.matches(other)


@contextmanager
def changed(weight: torch.Tensor) -> Iterator[None]:
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_an_adapter_at_or_below_the_layer_makes_another_model(kind: str, name: str) -> None:
    wrapped = wrap(kind, name)
    mine = of(wrapped)
    assert differ(mine, plain(kind)) and "with an adapter (PEFT)" in mine.describe()
    assert mine == of(wrapped) and mine == Fingerprint.from_json(mine.to_json())
    with wrapped.disable_adapter():
        assert of(wrapped) == plain(kind)
    assert of(wrapped) == mine
    assert trained(wrapped)
    for name_of_weight, weight in trained(wrapped).items():
        with changed(weight):
            assert differ(mine, of(wrapped)), name_of_weight
    assert adapters.has_virtual_tokens(wrapped) == (name in PROMPTS)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] not in EVERYWHERE])
def test_an_adapter_above_the_layer_is_none_of_its_business(kind: str, name: str) -> None:
    assert of(wrap(kind, name, "[23]")) == plain(kind)


@pytest.fixture(scope="module")
def plain_db(tmp_path_factory: pytest.TempPathFactory) -> NeuralDB:
    folder = tmp_path_factory.mktemp("plain") / "db"
    return build([FACT], tiny("llama")[0], tiny_tokenizer(), folder, layer=LAYER, residual="none")


@pytest.mark.parametrize("name", ["LORA", "IA3", "VERA", "FOURIERFT", "PREFIX_TUNING", "P_TUNING"])
def test_databases_are_refused_both_ways(name: str, plain_db: NeuralDB) -> None:
    wrapped = wrap("llama", name)
    with pytest.raises(FingerprintError, match="this model is .*with an adapter .PEFT. at or below"):
        plain_db.attach(wrapped, tiny_tokenizer())
    with pytest.raises(FingerprintError, match="built with .*with an adapter"):
        check_model(replace(plain_db.config, fingerprint=of(wrapped).to_json()), tiny("llama")[0])
    with wrapped.disable_adapter(), plain_db.attach(wrapped, tiny_tokenizer()):
        pass
    plain_db.attach(wrapped, tiny_tokenizer(), strict=False).remove()


@pytest.mark.parametrize("name", ["IA3", "VERA", "LN_TUNING"])
def test_a_database_of_an_adapted_model_fires_there(name: str, tmp_path: Path) -> None:
    wrapped = wrap("llama", name)
    db = build([FACT], wrapped, tiny_tokenizer(), tmp_path / "db", layer=LAYER, residual="none")
    ids = tiny_tokenizer()(FACT.text, return_tensors="pt").input_ids
    with db.attach(wrapped, tiny_tokenizer()) as handle, torch.no_grad():
        wrapped(input_ids=ids)
        assert handle.hits == 1


@pytest.mark.parametrize("name", sorted(PROMPTS))
def test_keys_cannot_be_made_behind_learnt_tokens(name: str, tmp_path: Path) -> None:
    wrapped = wrap("llama", name)
    with pytest.raises(ModelError, match="learnt tokens in front.*disable_adapter"):
        build([FACT], wrapped, tiny_tokenizer(), tmp_path / "db", layer=LAYER, residual="none")
    with wrapped.disable_adapter():
        build([FACT], wrapped, tiny_tokenizer(), tmp_path / "plain", layer=LAYER, residual="none")


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True}, {"lora_bias": True}, {"use_rslora": True}, {"init_lora_weights": "pissa"},
        {"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"], "target_modules": ["lm_head"]},
        {"modules_to_save": ["mlp"], "target_modules": ["lm_head"]}, {"trainable_token_indices": [5, 6]},
        {"target_modules": "all-linear"},
    ],
)  # fmt: skip
def test_the_kinds_of_lora(options: dict[str, Any]) -> None:
    wrapped = wrap("llama", "LORA", **options)
    mine = of(wrapped)
    assert differ(mine, plain("llama"))
    if "init_lora_weights" not in options:  # PiSSA changes the plain weights
        with wrapped.disable_adapter():
            assert of(wrapped) == plain("llama")
    for name, weight in trained(wrapped).items():
        with changed(weight):
            assert differ(mine, of(wrapped)), name


def test_a_lora_on_the_head_is_above_every_layer() -> None:
    assert of(wrap("llama", "LORA", target_modules=["lm_head"])) == plain("llama")


@pytest.mark.parametrize("name", ["LORA", "ADALORA"])
def test_a_product_of_zero_is_no_adapter_yet(name: str) -> None:
    wrapped = wrap("llama", name)
    with torch.no_grad():
        for weight_name, weight in wrapped.named_parameters():
            if "lora_B" in weight_name or "lora_E" in weight_name:
                weight.zero_()
    assert of(wrapped) == plain("llama")


def test_only_active_adapters_count() -> None:
    wrapped = wrap("llama", "LORA")
    first = of(wrapped)
    wrapped.add_adapter("second", wrapped.peft_config["default"])
    assert of(wrapped) == first
    wrapped.set_adapter("second")
    assert of(wrapped) == plain("llama")  # not trained yet
    train(wrapped, 5)
    second = of(wrapped)
    assert differ(first, second) and differ(second, plain("llama"))
    wrapped.base_model.set_adapter(["default", "second"])
    both = of(wrapped)
    assert both == of(wrapped) and differ(both, first) and differ(both, second)
    assert Fingerprint.from_json(both.to_json()) == both
    wrapped.set_adapter("default")
    assert of(wrapped) == first


def test_an_adapter_of_another_strength_is_another_one() -> None:
    wrapped = wrap("llama", "LORA")
    mine = of(wrapped)
    for layer in wrapped.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling["default"] *= 2
    assert differ(mine, of(wrapped))


def test_adapters_that_transformers_added() -> None:
    model, _ = tiny("llama")
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    train(model)
    assert differ(of(model), plain("llama"))
    model.disable_adapters()
    assert of(model) == plain("llama")


def test_merged_adapters_are_in_the_weights() -> None:
    wrapped = wrap("llama", "LORA")
    mine = of(wrapped)
    wrapped.merge_adapter()
    merged = of(wrapped)
    assert differ(merged, plain("llama")) and differ(merged, mine)
    assert "adapter" not in merged.describe()


def test_a_mixture_of_adapters(tmp_path: Path) -> None:
    """X-LoRA weighs several with a classifier of its own, which lies beside the model."""
    for number in range(2):
        wrap("llama", "LORA", r=2 + number).save_pretrained(tmp_path / str(number))
    model, _ = tiny("llama")
    model.config.use_cache = False
    paths = {str(number): str(tmp_path / str(number)) for number in range(2)}
    config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=D_MODEL, adapters=paths)
    wrapped = peft.get_peft_model(model, config).eval()
    mine = of(wrapped)
    assert differ(mine, plain("llama"))
    weights = [w for n, w in wrapped.named_parameters() if "classifier" in n]
    assert weights
    with changed(weights[0]):
        assert differ(mine, of(wrapped))


def test_a_fingerprint_from_before_factors_were_kept_still_fits() -> None:
    """Older databases know of LoRA its two weights, under these names."""
    wrapped = wrap("llama", "LORA")
    mine = of(wrapped)
    old = Fingerprint.from_json(mine.to_json())
    samples = tuple((n, values) for n, values in old.samples if not n.startswith("scaling:"))
    object.__setattr__(old, "samples", samples)
    assert old.matches(mine) and mine.matches(old)
    known = {f"adapter:model.layers.{i}.{m}.{w}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")
             for w in ("lora_A", "lora_B")}  # fmt: skip
    assert {n for n, _ in samples if n.startswith("adapter:")} == known
