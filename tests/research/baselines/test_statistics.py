"""C0 equals the plain sum over tokens, is made once, and is found for its own model only."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny import save_tiny, tiny
from helpers.weight_edits import second_moment, write_texts
from neuraldb_faiss.errors import BuildError, CorruptError, FactError, ModelError
from neuraldb_faiss.models import find_site
from neuraldb_faiss.research.baselines import Statistics, make_statistics
from neuraldb_faiss.research.baselines import statistics as module


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def matrix_of(folder: Path, model: Any, layer: int) -> np.ndarray:
    return np.array(Statistics(folder).moments(model, [find_site(model, layer)])[layer].matrix)


@pytest.mark.parametrize("tokenizer_kind", ["bytelevel", "metaspace"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "opt"])
def test_equals_the_plain_sum(kind: str, tokenizer_kind: str, tmp_path: Path) -> None:
    model, tokenizer = tiny(kind, tokenizer_kind)
    path = write_texts(tmp_path / "t.jsonl", 7)
    made = make_statistics(model, tokenizer, str(path), tmp_path / "c0", layers=[2, 1, 1])
    assert list(made) == [1, 2] and all(file.is_file() for file in made.values())
    found = Statistics(tmp_path / "c0").moments(model, [find_site(model, layer) for layer in (1, 2)])
    for layer, moment in found.items():
        assert moment.matrix.dtype == np.float64 and moment.matrix.shape == (128, 128)
        wanted = second_moment(model, tokenizer, find_site(model, layer), texts_of(path))
        np.testing.assert_allclose(moment.matrix, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())
        assert moment.tokens == sum(len(tokenizer(text)["input_ids"]) for text in texts_of(path))
        np.testing.assert_allclose(moment.on(torch.device("cpu")).numpy(), moment.matrix)


def test_no_more_than_the_wanted_tokens(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    path = write_texts(tmp_path / "t.jsonl", 30)
    make_statistics(model, tokenizer, str(path), tmp_path / "c0", layers=[1], tokens=50, max_length=8)
    moment = Statistics(tmp_path / "c0").moments(model, [find_site(model, 1)])[1]
    assert moment.tokens == 50
    cut = [tokenizer.decode(tokenizer(text)["input_ids"][:8]) for text in texts_of(path)[:7]]
    cut[6] = tokenizer.decode(tokenizer(cut[6])["input_ids"][:2])
    wanted = second_moment(model, tokenizer, find_site(model, 1), cut)
    np.testing.assert_allclose(moment.matrix, wanted, rtol=1e-3, atol=1e-5)


def test_batches_change_nothing_but_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    path = str(write_texts(tmp_path / "t.jsonl", 20))
    make_statistics(model, tokenizer, path, tmp_path / "one", layers=[1])
    monkeypatch.setattr(module, "_CPU_TOKENS", 40)
    seen: list[Any] = []
    make_statistics(model, tokenizer, path, tmp_path / "many", layers=[1], report=seen.append)
    np.testing.assert_allclose(matrix_of(tmp_path / "many", model, 1), matrix_of(tmp_path / "one", model, 1), rtol=1e-4,
                               atol=1e-6)  # fmt: skip
    assert len(seen) > 3 and seen[-1].done == seen[-1].total == sum(
        len(tokenizer(text)["input_ids"]) for text in texts_of(tmp_path / "t.jsonl")
    )


def test_statistics_of_the_same_text_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    path = write_texts(tmp_path / "t.jsonl", 5)
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    made = make_statistics(model, tokenizer, str(path), tmp_path / "c0", layers=[1])
    monkeypatch.setattr(module, "_moments", lambda *_: pytest.fail("made again"))
    assert make_statistics(model, tokenizer, str(packed), tmp_path / "c0", layers=[1]) == made  # the same text


@pytest.mark.parametrize("change", ["text", "tokens", "layer", "model"])
def test_what_differs_has_a_name_of_its_own(change: str, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    settings: dict[str, Any] = {"layers": [1], "tokens": 40}
    first = make_statistics(model, tokenizer, str(write_texts(tmp_path / "a.jsonl", 5)), tmp_path / "c0", **settings)
    text = write_texts(tmp_path / "b.jsonl", 5, seed=int(change == "text"))
    if change == "model":
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight += 1
    changes: dict[str, dict[str, Any]] = {"tokens": {"tokens": 30}, "layer": {"layers": [2]}}
    settings |= changes.get(change, {})
    second = make_statistics(model, tokenizer, str(text), tmp_path / "c0", **settings)
    assert set(first.values()).isdisjoint(second.values()) and len(list((tmp_path / "c0").glob("*.npy"))) == 2


def test_the_most_tokens_count(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    path = str(write_texts(tmp_path / "t.jsonl", 9))
    for tokens in (100, 30, 60):
        make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[1], tokens=tokens)
    assert Statistics(tmp_path / "c0").moments(model, [find_site(model, 1)])[1].tokens == 100


def test_a_dataset_by_name(tmp_path: Path) -> None:
    import datasets

    model, tokenizer = tiny("llama")
    path = write_texts(tmp_path / "t.jsonl", 6)
    datasets.Dataset.from_list([{"text": text} for text in texts_of(path)]).save_to_disk(tmp_path / "saved")
    make_statistics(model, tokenizer, f"datasets:{tmp_path / 'saved'}", tmp_path / "a", layers=[1])
    make_statistics(model, tokenizer, str(path), tmp_path / "b", layers=[1])
    np.testing.assert_array_equal(matrix_of(tmp_path / "a", model, 1), matrix_of(tmp_path / "b", model, 1))


def test_missing_ones_name_the_command(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    model.config._name_or_path = model.name_or_path = str(save_tiny(tmp_path / "model"))
    sites = [find_site(model, layer) for layer in (0, 1, 2)]
    command = rf"neuraldb statistics TEXT.jsonl --model {tmp_path}/model --layers 0,1,2 --out {tmp_path}/c0`"
    with pytest.raises(BuildError, match=f"layer 0,1,2 of this model.*{command}"):
        Statistics(tmp_path / "c0").moments(model, sites)
    make_statistics(model, tokenizer, str(write_texts(tmp_path / "t.jsonl", 5)), tmp_path / "c0", layers=[1])
    with pytest.raises(BuildError, match="--layers 0,2 "):
        Statistics(tmp_path / "c0").moments(model, sites)


def test_another_models_do_not_serve_and_another_types_do(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    make_statistics(model, tokenizer, str(write_texts(tmp_path / "t.jsonl", 5)), tmp_path / "c0", layers=[1])
    wanted = matrix_of(tmp_path / "c0", model, 1)
    np.testing.assert_array_equal(matrix_of(tmp_path / "c0", tiny("llama")[0].to(torch.bfloat16), 1), wanted)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    with pytest.raises(BuildError, match="no key statistics of layer 1"):
        matrix_of(tmp_path / "c0", model, 1)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_damage_is_noticed(suffix: str, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    made = make_statistics(model, tokenizer, str(write_texts(tmp_path / "t.jsonl", 5)), tmp_path / "c0", layers=[1])
    path = made[1].with_suffix(suffix)
    data = bytearray(path.read_bytes())
    data[-9 if suffix == ".npy" else 1] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=str(path)):
        matrix_of(tmp_path / "c0", model, 1)


def test_an_array_without_its_record_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    path = str(write_texts(tmp_path / "t.jsonl", 5))
    made = make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[1])[1]
    wanted = matrix_of(tmp_path / "c0", model, 1)
    made.with_suffix(".json").unlink()
    made.write_bytes(b"half")
    with pytest.raises(BuildError, match="no key statistics"):
        matrix_of(tmp_path / "c0", model, 1)
    make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[1])
    np.testing.assert_array_equal(matrix_of(tmp_path / "c0", model, 1), wanted)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, FactError, "there is no text file"),
        ('{"title": "x"}\n', FactError, 'record 1: a text is an object with the field "text"'),
        ('{"text": "Rome is in Italy"}\n[1]\n', FactError, "record 2: a text"),
        ('{"text": "Rome"}\n{"text": \n', FactError, "line 2: not valid JSON"),
        ('{"text": ""}\n', BuildError, "holds no text"),
        ("", BuildError, "holds no text"),
    ],
)
def test_bad_texts_leave_nothing(text: str | None, error: type[Exception], message: str, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    path = tmp_path / "t.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        make_statistics(model, tokenizer, str(path), tmp_path / "c0", layers=[1])
    assert not (tmp_path / "c0").exists()


def test_bad_settings_and_models(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    path = str(write_texts(tmp_path / "t.jsonl", 3))
    with pytest.raises(BuildError, match="at least one token"):
        make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[1], tokens=0)
    with pytest.raises(BuildError, match="at least one layer"):
        make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[])
    with pytest.raises(ModelError, match="layer 9 does not exist"):
        make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[9])
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(BuildError, match="not finite.*--dtype float32"):
        make_statistics(model, tokenizer, path, tmp_path / "c0", layers=[1])
    assert not (tmp_path / "c0").exists()
    assert not any(part._forward_pre_hooks for part in model.modules())
