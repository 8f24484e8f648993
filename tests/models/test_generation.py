"""Greedy generation: nothing of the model's own generation config comes in but its end tokens."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import GenerationConfig, PreTrainedTokenizerFast

from helpers.tiny import save_tiny, tiny, tiny_tokenizer
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.inference.ask import ask
from neuraldb_faiss.models import load_model
from neuraldb_faiss.models.generation import end_ids, greedy
from neuraldb_faiss.research.evaluation.generation import greedy_texts

PROMPT = "The Eiffel Tower is located in the city of"
# What a model's own generation_config.json may hold, and what it would do to `generate`.
HOSTILE: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "stop_strings": ["e", "a", "."],
    "num_return_sequences": 2,
    "num_beams": 2,
    "do_sample": True,
    "temperature": 5.0,
    "repetition_penalty": 3.0,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": list(range(300)),
    "begin_suppress_tokens": list(range(300)),
    "bad_words_ids": [[token] for token in range(300)],
    "sequence_bias": [[[5], 100.0]],
    "forced_eos_token_id": 0,
    "exponential_decay_length_penalty": [1, 5.0],
    "min_new_tokens": 100,
    "max_length": 3,
    "max_time": 0.0,
    "guidance_scale": 3.0,
    "prompt_lookup_num_tokens": 2,
    "renormalize_logits": True,
    "use_cache": False,
    "watermarking_config": {"bias": 50.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model "tiny" and a database "db" of it."""
    root = tmp_path_factory.mktemp("generation")
    save_tiny(root / "tiny")
    model, tokenizer = load_model(root / "tiny")
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    build([fact], model, tokenizer, root / "db", steps=12, max_steps=0).close()
    return root


def answer(folder: Path, model_folder: Path) -> tuple[str, str | None]:
    model, tokenizer = load_model(model_folder)
    with NeuralDB.open(folder / "db") as db, db.attach(model, tokenizer) as handle:
        found = ask(db, handle, model, tokenizer, PROMPT, compare=True, max_new_tokens=12)
        assert found.new == 12 and found.fired
    return found.edited, found.base


@pytest.mark.parametrize(
    "names",
    [
        *([name] for name in HOSTILE if name != "num_return_sequences"),
        ["num_return_sequences", "num_beams"],
        ["stop_strings", "return_dict_in_generate", "repetition_penalty"],
    ],
    ids="+".join,
)
def test_the_models_generation_config_changes_no_greedy_answer(folder: Path, tmp_path: Path, names: list[str]) -> None:
    other = Path(shutil.copytree(folder / "tiny", tmp_path / "tiny"))
    path = other / "generation_config.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps({**own, **{name: HOSTILE[name] for name in names}}))
    assert answer(folder, other) == answer(folder, folder / "tiny")


def test_the_models_config_is_left_as_it_was() -> None:
    model, _ = tiny("llama")
    model.generation_config.repetition_penalty = 3.0
    before = model.generation_config.to_dict()
    ids = torch.tensor([[5, 6, 7]])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy(4))
    assert made.shape == (1, 7) and model.generation_config.to_dict() == before


# ---- ends


def speaking(template: str | None, *tokens: str, special: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of the test's own, with further tokens and a chat template."""
    made = copy.deepcopy(tiny_tokenizer("bytelevel"))
    made.add_tokens([AddedToken(token, special=special, normalized=False) for token in tokens], special_tokens=special)
    made.chat_template = template
    return made


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"  # as GLM's: the next mark ends a turn


class Model:
    def __init__(self, eos: Any) -> None:
        self.generation_config = GenerationConfig(eos_token_id=eos)


@pytest.mark.parametrize(
    ("template", "tokens", "ends"),
    [
        (None, [], []),
        (CHATML, ["<|im_start|>", "<|im_end|>"], ["<|im_end|>"]),
        (None, ["<|eot_id|>", "<|start_header_id|>"], ["<|eot_id|>"]),
        (CHATML.replace("<|im_end|>\n", " <stop>"), ["<stop>", "<sto"], ["<stop>"]),
        (MARKED, ["<|user|>", "<|assistant|>"], ["<|user|>"]),
        ("{{ raise_exception('no') }}", ["<end_of_turn>"], ["<end_of_turn>"]),
        ("{{ messages[0].content }}", ["<|x|>"], []),
    ],
)
@pytest.mark.parametrize("special", [True, False])
def test_ends_are_those_of_config_tokenizer_and_template(
    template: str | None, tokens: list[str], ends: list[str], special: bool
) -> None:
    words = speaking(template, *tokens, special=special)
    others: Any = words.convert_tokens_to_ids(ends)
    expected = {words.eos_token_id, *others}
    assert end_ids(Model(None), words) == expected
    assert end_ids(Model(7), words) == {7, *expected}
    assert end_ids(Model([7, 9]), words) == {7, 9, *expected}


def test_answers_and_evaluation_end_at_the_end_of_a_turn() -> None:
    """Though only the tokenizer knows it."""
    model, _ = tiny("llama")
    words = speaking(CHATML, "<|im_end|>")
    with torch.no_grad():
        model.resize_token_embeddings(len(words), mean_resizing=False)
    end = words.convert_tokens_to_ids("<|im_end|>")
    ids = words(PROMPT)["input_ids"]
    rows = torch.tensor([ids])
    third = model.generate(rows, attention_mask=torch.ones_like(rows), **greedy(3))[0, -1]
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[end] = head[third] * 2  # said where the third token was said
    made = model.generate(
        rows, attention_mask=torch.ones_like(rows), **greedy(12, end_ids(model, words), words.pad_token_id)
    )
    assert int(made[0, -1]) == end and made.shape[1] < len(ids) + 12
    expected = words.decode(made[0, len(ids) : -1])
    assert greedy_texts(model, words, [ids], 12) == [expected]
