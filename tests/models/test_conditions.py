"""The model may be trained, compiled, offloaded, quantised or wrapped: facts go in and fire all the same, or an
error says what cannot be done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from helpers.reference_residual import reference_residual
from helpers.tiny import D_FFN, D_MODEL, N_HEADS, N_LAYERS, tiny, tiny_tokenizer
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.errors import BuildError, FingerprintError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.solver import ResidualConfig, solve_residuals

FACT = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
LAYER = 1
CONFIG = ResidualConfig(steps=4, lr=0.5, weight_decay=0.5, clamp=0.75, kl_factor=0.0625)
PREFIXES = ("The city of", "Because")


def made(model: Any, folder: Path, **settings: Any) -> NeuralDB:
    return build([FACT], model, tiny_tokenizer(), folder, layer=LAYER, steps=4, **settings)


def residual(db: NeuralDB) -> np.ndarray:
    (fact,) = db.facts()
    return db.snapshot.residuals(np.array([fact.entry]))[0]


def fires(db: NeuralDB, model: Any, tokenizer: Any, generates: bool = True) -> list[tuple[int, int]]:
    """(position, entry) that fire in the fact's prompt, read and continued."""
    ids = tokenizer(FACT.text, return_tensors="pt")
    with db.attach(model, tokenizer) as handle, torch.no_grad():
        model(**ids)
        found = [(fire.position, fire.entry_id) for fire in handle.trace()]
        if generates:
            handle.clear_trace()
            model.generate(**ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
            assert [(f.position, f.entry_id) for f in handle.trace()][: len(found)] == found
    return found


@pytest.fixture
def plain(tmp_path: Path) -> NeuralDB:
    """A database made with the plain model."""
    return made(tiny("llama")[0], tmp_path / "plain")


PLACE = [(6, 0)]  # the subject's last token, the only entry


def test_the_plain_model(plain: NeuralDB, tiny_llama: tuple[Any, Any]) -> None:
    assert fires(plain, *tiny_llama) == PLACE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode(checkpointing: bool, tmp_path: Path) -> None:
    """Dropout, which GPT-2 has, neither moves prefixes, keys and residuals nor is switched off for good."""
    model, tokenizer = tiny("gpt2")
    wanted = made(model, tmp_path / "eval")
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    got = made(model, tmp_path / "train")
    assert model.training and model.transformer.h[0].mlp.dropout.training
    assert got.settings["prefixes"] == wanted.settings["prefixes"]
    np.testing.assert_array_equal(residual(got), residual(wanted))
    assert fires(got, model, tokenizer)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_without_gradients(
    mode: Callable[[], Any], plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny_llama
    with mode():
        got = made(model, tmp_path / "db")
        assert fires(got, model, tokenizer) == PLACE
    np.testing.assert_array_equal(residual(got), residual(plain))


def test_a_model_loaded_under_inference_mode(plain: NeuralDB, tmp_path: Path) -> None:
    with torch.inference_mode():
        model, tokenizer = tiny("llama")
    assert fires(plain, model, tokenizer) == PLACE
    made(model, tmp_path / "keys", residual="none")
    with pytest.raises(BuildError, match="loaded under torch.inference_mode.*load it outside"):
        made(model, tmp_path / "db")


def test_compiled(plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny_llama
    compiled: Any = torch.compile(model, backend="eager")
    got = made(compiled, tmp_path / "db")
    np.testing.assert_array_equal(residual(got), residual(plain))
    assert fires(plain, compiled, tokenizer, generates=False) == PLACE
    assert fires(got, model, tokenizer) == PLACE


@pytest.mark.parametrize("where", ["cpu", "disk", "some layers"])
def test_offloaded(where: str, plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, tokenizer = tiny_llama
    if where == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif where == "disk":
        accelerate.disk_offload(model, str(tmp_path / "weights"), execution_device="cpu")
    else:
        places: dict[str, Any] = {f"model.layers.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
        places |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        accelerate.dispatch_model(
            model, places, main_device="cpu", offload_dir=str(tmp_path / "weights"), force_hooks=True
        )
    assert model.model.layers[1].mlp.down_proj.weight.is_meta
    got = made(model, tmp_path / "db")
    cosine = torch.cosine_similarity(torch.from_numpy(residual(got)), torch.from_numpy(residual(plain)), dim=0)
    assert float(cosine) > 0.999
    assert fires(plain, model, tokenizer) == fires(got, model, tokenizer) == PLACE
    assert model.model.layers[1].mlp.down_proj.weight.is_meta


# ---- quantised


def assert_solves(model: Any) -> None:
    """The residual is the plain reference's for this very model."""
    site = find_site(model, LAYER)
    tokenizer = tiny_tokenizer()
    facts = [(FACT.subject, FACT.text, FACT.target)]
    wanted = reference_residual(
        model, tokenizer, site.module, site.block, facts, PREFIXES, **dataclasses.asdict(CONFIG)
    )
    (solved,) = solve_residuals(model, tokenizer, site, [[FACT]], PREFIXES, CONFIG)
    got = torch.from_numpy(solved.residual)
    assert got.any() and float(torch.cosine_similarity(got, wanted.residual, dim=0)) > 0.99


def test_torchao_int8_weights(plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model, tokenizer = tiny_llama
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert_solves(model)
    assert fires(made(model, tmp_path / "db"), model, tokenizer) == PLACE
    # Keys hardly move: what the plain model learnt, the quantised one says too.
    assert fires(plain, model, tokenizer) == PLACE


def test_torchao_int8_activations(plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    """They are rounded, and rounding has no gradient."""
    quantization = pytest.importorskip("torchao.quantization")
    model, tokenizer = tiny_llama
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    assert fires(plain, model, tokenizer) == PLACE
    with pytest.raises(BuildError, match="no true gradient.*quantised.*solve with the unquantised model"):
        made(model, tmp_path / "db")


@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes(bits: int, plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model, tokenizer = tiny_llama
    model.save_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}), dtype=torch.float32
    )
    assert not model.model.layers[1].mlp.down_proj.weight.is_floating_point()
    assert fires(plain, model, tokenizer) == PLACE
    state = getattr(model.model.layers[1].mlp.down_proj.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        # After its first forward on such a CPU a 4-bit layer runs a kernel that has no backward, and does not say so.
        with pytest.raises(BuildError, match="no true gradient.*quantised"):
            made(model, tmp_path / "db")
        assert fires(made(model, tmp_path / "keys", residual="none"), model, tokenizer) == PLACE
    else:
        assert_solves(model)
        assert fires(made(model, tmp_path / "db"), model, tokenizer) == PLACE


def write_gguf(path: Path, model: Any) -> None:
    """The model as llama.cpp keeps it, in Q8_0."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_FFN)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model.config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, N_LAYERS)
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        key = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    """transformers reads GGUF into plain float weights: another model than the one it was made from."""
    from transformers import AutoModelForCausalLM

    model, tokenizer = tiny_llama
    write_gguf(tmp_path / "model.gguf", model)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert type(model.model.layers[1].mlp.down_proj) is nn.Linear
    assert_solves(model)
    assert fires(made(model, tmp_path / "db"), model, tokenizer) == PLACE
    with pytest.raises(FingerprintError, match="built with llama.*this model is llama"):
        fires(plain, model, tokenizer)


# ---- wrapped by PEFT


def lora(model: Any, layers: list[int], modules: tuple[str, ...] = ("q_proj", "v_proj"), trained: bool = True) -> Any:
    """The model under a LoRA adapter in these layers, as training it for a while would leave it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=list(modules), layers_to_transform=layers, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config).eval()
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight.copy_(0.5 * torch.randn(weight.shape, generator=generator))
    return wrapped


def test_lora_above_the_layer_leaves_the_keys_alone(plain: NeuralDB, tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    wrapped = lora(model, [2, 3])
    assert fires(plain, wrapped, tokenizer) == PLACE
    assert find_site(wrapped, LAYER).module_name == "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("down_proj",), ("up_proj", "o_proj")])
def test_lora_at_or_below_the_layer(
    modules: tuple[str, ...], plain: NeuralDB, tiny_llama: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = tiny_llama
    wrapped = lora(model, [0, 1], modules)
    with pytest.raises(FingerprintError, match="layer 1, .*this model is .*with an adapter .PEFT. at or below"):
        plain.attach(wrapped, tokenizer)
    got = made(wrapped, tmp_path / "db")
    assert "with an adapter" in got.info()["model"]
    assert fires(got, wrapped, tokenizer) == PLACE
    with pytest.raises(FingerprintError, match="built with .*with an adapter"):
        got.attach(tiny("llama")[0], tokenizer)
    with wrapped.disable_adapter():  # the plain model again
        assert fires(plain, wrapped, tokenizer) == PLACE
    merged = wrapped.merge_and_unload()
    with pytest.raises(FingerprintError):
        plain.attach(merged, tokenizer)


def test_residuals_under_lora_are_the_wrapped_models(tiny_llama: tuple[Any, Any]) -> None:
    model, _ = tiny_llama
    wrapped = lora(model, [0, 1, 2, 3])
    trainable = {name for name, weight in wrapped.named_parameters() if weight.requires_grad}
    assert_solves(wrapped)
    assert trainable == {name for name, weight in wrapped.named_parameters() if weight.requires_grad}


def test_lora_that_was_not_trained_yet(plain: NeuralDB, tiny_llama: tuple[Any, Any]) -> None:
    """It changes nothing: a run that trains it under a database may begin."""
    model, tokenizer = tiny_llama
    assert fires(plain, lora(model, [0, 1], trained=False), tokenizer) == PLACE


def test_adapters_of_other_names_are_the_same(tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny_llama
    wrapped = lora(model, [0])
    got = made(wrapped, tmp_path / "db")
    wrapped.save_pretrained(tmp_path / "adapter")
    peft = pytest.importorskip("peft")
    again = peft.PeftModel.from_pretrained(tiny("llama")[0], tmp_path / "adapter", adapter_name="other").eval()
    assert fires(got, again, tokenizer) == PLACE
