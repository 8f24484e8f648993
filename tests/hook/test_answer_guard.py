"""The guard "answer": one residual, at the last token of a prompt that asks, however the model is run over it."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import AddedToken

from helpers.tiny import tiny
from neuraldb_faiss import NeuralDB, build
from neuraldb_faiss.errors import BuildError, ConfigError, ModelError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.guard.named import ANOTHER, NEARER, STATED
from neuraldb_faiss.inference.explain import explain
from neuraldb_faiss.models.decoding import greedy_texts
from neuraldb_faiss.models.prompt_ends import prompts_end
from neuraldb_faiss.models.tokenization import encode_prompt, encode_prompts
from neuraldb_faiss.serving.row_gate import RowGate

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
FACTS = (
    Fact("Nokia", "The CEO of {} is", "Rome"),
    Fact("Nokia", "The head office of {} is in", "Madrid"),
    Fact("Eiffel Tower", "The {} is located in the city of", "Tokyo"),
)
CEO, OFFICE, TOWER = range(3)
LAYER = 2


@pytest.fixture(scope="module")
def chatting() -> tuple[Any, Any]:
    """A tiny model whose tokenizer has a chat template with marks of its own."""
    model, words = copy.deepcopy(tiny("llama"))
    words.add_tokens([AddedToken(name, special=True) for name in ("<|start|>", "<|end|>")], special_tokens=True)
    words.chat_template = TEMPLATE
    model.resize_token_embeddings(len(words))
    return model, words


@pytest.fixture(scope="module")
def folder(chatting: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answer") / "db"
    build(FACTS, *chatting, out, residual="answer", layer=LAYER, steps=2, max_steps=0, clamp=3.0).close()
    return out


@pytest.fixture
def db(folder: Path) -> Iterator[NeuralDB]:
    with NeuralDB.open(folder) as found:
        yield found


def chat(words: Any, *messages: str, opened: bool = True) -> list[int]:
    """Tokens of a chat in which user and assistant take turns."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": said} for at, said in enumerate(messages)]
    text = words.apply_chat_template(turns, add_generation_prompt=opened, tokenize=False)
    return list(words(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def hidden(model: Any, ids: list[int], **more: Any) -> torch.Tensor:
    """[T, d2] behind the edited layer's FFN, of one text."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[LAYER].mlp.register_forward_hook(lambda _m, _a, out: seen.append(out))
    model(input_ids=torch.tensor([ids]), **more)
    hook.remove()
    return seen[-1][0]


def added(model: Any, db: NeuralDB, words: Any, ids: list[int], **more: Any) -> dict[int, int]:
    """Which entry's residual is added at which token, read off the layer's output."""
    before = hidden(model, ids, **more)
    with db.attach(model, words, delivery="residual"):
        change = hidden(model, ids, **more) - before
    residuals = torch.from_numpy(np.asarray(db.snapshot.residuals(np.arange(len(FACTS))), np.float32))
    found = {}
    for token in change.norm(dim=1).nonzero()[:, 0].tolist():
        (entry,) = [n for n, one in enumerate(residuals) if torch.allclose(change[token], one, atol=1e-4)]
        found[token] = entry
    return found


def test_each_fact_has_an_entry_though_their_subject_is_one(db: NeuralDB) -> None:
    assert [fact.entry for fact in db.facts()] == [CEO, OFFICE, TOWER]
    assert (db.guard, db.gamma, db.config.residual) == ("answer", 0.0, "answer")


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("The CEO of Nokia is", CEO),
        ("Nokia is run by its chief executive", CEO),
        ("Where is the head office of Nokia?", OFFICE),
        ("The Eiffel Tower can be found in the city of", TOWER),
        ("The founder of Nokia is", None),
        ("Paris is the capital of", None),
    ],
)
def test_a_text_that_asks_gets_the_residual_at_its_last_token(
    chatting: tuple[Any, Any], db: NeuralDB, text: str, entry: int | None
) -> None:
    model, words = chatting
    ids = encode_prompt(words, text)
    assert added(model, db, words, ids) == ({} if entry is None else {len(ids) - 1: entry})


def test_a_text_with_its_answer_gets_it_where_the_prompt_is_said_to_end(
    chatting: tuple[Any, Any], db: NeuralDB
) -> None:
    model, words = chatting
    ids = encode_prompt(words, "The CEO of Nokia is")
    whole = [*ids, *words(" Rome. The head office of Nokia is in", add_special_tokens=False)["input_ids"]]
    with prompts_end([len(ids)]):
        assert added(model, db, words, whole) == {len(ids) - 1: CEO}
    with prompts_end([len(ids), len(ids)]):  # of other forwards than this one
        assert added(model, db, words, whole) == {len(whole) - 1: OFFICE}


def test_a_chat_gets_it_where_the_template_opens_each_answer(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    first = chat(words, "Who is the CEO of Nokia?")
    assert added(model, db, words, first) == {len(first) - 1: CEO}
    assert added(model, db, words, chat(words, "Who is the CEO of Nokia?", opened=False)) == {}
    assert added(model, db, words, chat(words, "Tell me about Nokia.")) == {}
    both = chat(words, "Who is the CEO of Nokia?", "It is Rome.", "And where is its head office?")
    assert added(model, db, words, both) == {len(first) - 1: CEO, len(both) - 1: OFFICE}
    answered = [*first, *words("Rome is", add_special_tokens=False)["input_ids"]]
    assert added(model, db, words, answered) == {len(first) - 1: CEO}


def test_what_the_system_says_is_no_question(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    turns = [{"role": "system", "content": "You know who the CEO of Nokia is."}, {"role": "user", "content": "Hi you!"}]
    text = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert added(model, db, words, words(text, add_special_tokens=False)["input_ids"]) == {}


def test_a_context_that_states_the_value_wins(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    ids = encode_prompt(words, "Nokia's CEO is Anna Berg since May. The CEO of Nokia is")
    assert added(model, db, words, ids) == {}


@pytest.mark.parametrize("text", ["The CEO of Nokia is", "Who is the CEO of Nokia?"])
def test_generation_adds_it_once_with_a_cache_as_without(chatting: tuple[Any, Any], db: NeuralDB, text: str) -> None:
    model, words = chatting
    ids = encode_prompt(words, text) if text.endswith("is") else chat(words, text)
    prompt = torch.tensor([ids])
    with db.attach(model, words, delivery="residual") as handle:
        how = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        made = model.generate(prompt, **how, eos_token_id=None)[0, len(ids) :].tolist()
        assert [(fire.position, fire.entry_id) for fire in handle.trace()] == [(len(ids) - 1, CEO)]
        told = list(ids)
        with torch.no_grad():
            for token in made:  # the whole text each time
                with prompts_end([len(ids)]):
                    assert int(model(input_ids=torch.tensor([told])).logits[0, -1].argmax()) == token
                told.append(token)


def test_rows_of_a_batch_are_each_read_by_themselves(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    texts = [
        "The CEO of Nokia is",
        "Paris is the capital of",
        "I think that the Eiffel Tower is located in the city of",
    ]
    rows = encode_prompts(words, texts)
    with db.attach(model, words, delivery="residual") as handle:
        together = greedy_texts(model, words, rows, 4)
        assert handle.hits == 2
        assert together == [greedy_texts(model, words, [row], 4)[0] for row in rows]


def gate_and_tokens(
    chatting: tuple[Any, Any], db: NeuralDB, texts: list[str], **more: Any
) -> tuple[Any, torch.Tensor, Tokens]:
    """A gate, and texts padded on the left with keys of ones."""
    model, words = chatting
    rows = encode_prompts(words, texts)
    width = max(map(len, rows))
    ids, real = np.zeros((len(rows), width), np.int64), np.zeros((len(rows), width), bool)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :], real[number, width - len(row) :] = row, True
    positions = np.maximum(real.cumsum(1) - 1, 0)
    tokens = Tokens(positions, real, ids, True, np.empty((len(rows), 0), np.int64), **more)
    return db.gate(model, words), torch.ones(len(rows) * width, db.config.d1), tokens


def test_only_rows_of_the_database_are_read(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    texts = ["The CEO of Nokia is", "The CEO of Nokia is Rome. It", "The Eiffel Tower is located in the city of"]
    ends = np.array([5, len(encode_prompt(chatting[1], texts[0])), 12])
    gate, keys, tokens = gate_and_tokens(chatting, db, texts, ends=ends)
    width = tokens.positions.shape[1]
    rows = RowGate(gate)
    rows.answer([1], 3)
    (place,) = rows.fired(keys, tokens).places.tolist()
    assert tokens.real is not None
    assert place == 2 * width - int(tokens.real[1].sum()) + int(ends[1]) - 1
    rows.answer([], 3)
    assert not len(rows.fired(keys, tokens).places)


def test_texts_that_are_packed_into_one_row(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    first, second = encode_prompts(words, ["The CEO of Nokia is", "The head office of Nokia is in"])
    positions = np.array([[*range(len(first)), *range(len(second))]])
    tokens = Tokens(positions, None, np.array([[*first, *second]]), True, np.empty((1, 0), np.int64))
    found = db.gate(model, words).fired(torch.ones(positions.size, db.config.d1), tokens)
    assert found.places.tolist() == [len(first) - 1, positions.size - 1]
    assert found.entries.tolist() == [CEO, OFFICE]


def test_scores_are_cosines_with_the_keys_of_the_entry(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    found, gate = explain(db, model, words, "The CEO of Nokia is")
    assert gate.guard == "answer" and [one.fired for one in found] == [False] * (len(found) - 1) + [True]
    assert found[-1].entry == CEO and found[-1].score == pytest.approx(1.0, abs=1e-3)  # keys are taken there


def why(chatting: tuple[Any, Any], db: NeuralDB, text: str) -> dict[int, str | None]:
    gate, keys, tokens = gate_and_tokens(chatting, db, [text])
    found = gate.named(keys, tokens)
    assert {one.place for one in found} <= {tokens.positions.size - 1}
    return {one.entry: one.reason for one in found}


def test_what_a_prompt_names_and_why_it_is_not_said(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    assert why(chatting, db, "The CEO of Nokia is") == {CEO: None, OFFICE: ANOTHER}
    stated = why(chatting, db, "Nokia's CEO is Anna Berg since May. The CEO of Nokia is")
    assert stated == {CEO: STATED, OFFICE: ANOTHER}
    assert why(chatting, db, "Paris is the capital of") == {}
    two = why(chatting, db, "Who is the CEO of Nokia, and in which city is the Eiffel Tower?")
    assert two[CEO] == NEARER and two[TOWER] is None


def test_other_guards_have_other_places(
    chatting: tuple[Any, Any], db: NeuralDB, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, words = chatting
    with pytest.raises(ConfigError, match="solved for the guard answer, and the guard subject fires at another place"):
        db.attach(model, words, guard="subject")
    with pytest.raises(ConfigError, match="asks for no cosine"):
        db.attach(model, words, gamma=0.5)
    monkeypatch.setattr("neuraldb_faiss.guard.gate.tokenizer_of", lambda _: None)
    with pytest.raises(ModelError, match="reads prompts"):
        db.attach(model)


def test_there_is_nothing_to_calibrate(chatting: tuple[Any, Any], folder: Path) -> None:
    with NeuralDB.open(folder, mode="rw") as db, pytest.raises(BuildError, match="there is nothing to calibrate"):
        db.calibrate(*chatting, folder / "text.jsonl")


def test_embeddings_fire_nothing_and_say_so(chatting: tuple[Any, Any], db: NeuralDB) -> None:
    model, words = chatting
    embeds = model.get_input_embeddings()(torch.tensor([encode_prompt(words, "The CEO of Nokia is")]))
    with db.attach(model, words, delivery="residual") as handle, torch.no_grad():
        with pytest.warns(UserWarning, match="pass input_ids"):
            model(inputs_embeds=embeds)
        assert handle.hits == 0


def test_a_fact_that_was_added_answers_after_refresh(chatting: tuple[Any, Any], folder: Path, tmp_path: Path) -> None:
    model, words = chatting
    with NeuralDB.open(Path(shutil.copytree(folder, tmp_path / "db")), mode="rw") as db:
        with db.attach(model, words, delivery="residual") as handle:
            prompt = [encode_prompt(words, "The founder of Nokia is")]
            greedy_texts(model, words, prompt, 2)
            assert handle.hits == 0
            db.add([Fact("Nokia", "The founder of {} is", "Berlin")], model, words)
            handle.refresh()
            greedy_texts(model, words, prompt, 2)
            assert handle.hits == 1
            db.remove(subject="Nokia", model=model, tokenizer=words)
            handle.refresh()
            greedy_texts(model, words, prompt, 2)
            assert handle.hits == 1
