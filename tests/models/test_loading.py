"""Models load ready to use, and what cannot be loaded is explained in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.tiny import save_tiny, tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny", "llama", "metaspace")


def _refused(*args: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


def test_a_loaded_model_is_the_saved_one(folder: Path) -> None:
    model, tokenizer = load_model(folder, device="cpu")
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert tokenizer.is_fast and tokenizer.pad_token is not None
    saved, words = tiny("llama", "metaspace")
    inputs = words("Rome is the capital of", return_tensors="pt")
    assert tokenizer("Rome is the capital of")["input_ids"] == inputs["input_ids"][0].tolist()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, saved(**inputs).logits)


@pytest.mark.parametrize("kind", ["gemma3", "llava", "qwen2_vl"])
def test_a_model_that_sees_is_loaded_too(kind: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(save_tiny(tmp_path / kind, kind), device="cpu")
    assert type(model) is type(tiny(kind)[0])
    inputs = tokenizer("Rome is the capital of", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, tiny(kind)[0](**inputs).logits)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("bf16", torch.bfloat16), (torch.float16, torch.float16), ("auto", torch.float32)]
)
def test_weights_are_loaded_in_the_dtype_asked_for(
    folder: Path, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    model, _ = load_model(str(folder), device="cpu", dtype=dtype)
    assert next(model.parameters()).dtype == expected


def test_a_missing_pad_token_is_filled_in(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    fields = json.loads(config.read_text())
    fields.pop("pad_token")
    config.write_text(json.dumps(fields))
    _, tokenizer = load_model(folder, device="cpu")
    assert tokenizer.pad_token == tokenizer.eos_token


def test_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (str(tmp_path / "no"), "models/SmolLM2-135M-Instruct", "./no", "a/b/c"):
        assert "there is no model at" in _refused(name)


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    assert "no config.json" in _refused(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    assert "is a file" in _refused(file)


def test_a_damaged_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "cannot load" in _refused(folder, device="cpu")


def test_missing_and_damaged_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert "cannot load the model" in _refused(folder, device="cpu")
    weights.unlink()
    assert "cannot load the model" in _refused(folder, device="cpu")


def test_weights_of_another_model(folder: Path, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "gpt2", "metaspace")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert "weights are missing" in _refused(folder, device="cpu")


def test_unknown_dtype_and_device(folder: Path) -> None:
    assert "unknown dtype 'int3'" in _refused(folder, dtype="int3")
    assert "unknown device 'abacus'" in _refused(folder, device="abacus")
    if not torch.cuda.is_available():
        assert "sees no GPU" in _refused(folder, device="cuda")
