"""Generated texts: repeatable whatever the batch; greedy matching against plain greedy decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.models import decoding
from neuraldb_faiss.models.tokenization import has_chat
from neuraldb_faiss.research.evaluation.generation import Match, greedy_texts, judge, match_targets, sample_texts

PROMPTS = ["The Eiffel Tower is in", "Rome", "I think that Tokyo is the city in Japan, and", "Rome"]
NAMES = ["a/0", "a/1", "b/0", "b/1"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_a_text_does_not_depend_on_its_batch(kind: str) -> None:
    model, tokenizer = tiny(kind)
    together = sample_texts(model, tokenizer, PROMPTS, NAMES, length=12)
    alone = [sample_texts(model, tokenizer, [p], [n], length=12)[0] for p, n in zip(PROMPTS, NAMES, strict=True)]
    assert together == alone
    assert together[1] != together[3]  # the same prompt by another name
    assert sample_texts(model, tokenizer, PROMPTS, NAMES, length=12, seed=1) != together
    torch.manual_seed(7)
    assert sample_texts(model, tokenizer, PROMPTS, NAMES, length=12) == together


def test_samples_are_of_the_five_likeliest(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("Rome")["input_ids"]])).logits[0, -1]
    logits[tokenizer.all_special_ids] = float("-inf")
    best, tokens = logits.topk(5)
    share: dict[str, float] = {}  # two halves of characters may look the same
    for token, probability in zip(tokens, best.softmax(0).tolist(), strict=True):
        text = tokenizer.decode([token])
        share[text] = share.get(text, 0) + probability
    n = 400
    drawn = sample_texts(model, tokenizer, ["Rome"] * n, [str(i) for i in range(n)], length=1)
    assert set(drawn) <= set(share)
    for text, probability in share.items():
        # five standard deviations of a binomial
        assert drawn.count(text) / n == pytest.approx(probability, abs=5 * (probability / n) ** 0.5 + 1e-3)


def test_greedy_texts_are_generates(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    rows = [tokenizer(text)["input_ids"] for text in ("The Eiffel Tower is", "Paris", "I was born in Spain and")]
    texts = greedy_texts(model, tokenizer, rows, 7)
    for row, text in zip(rows, texts, strict=True):
        made = model.generate(torch.tensor([row]), max_new_tokens=7, do_sample=False)[0, len(row) :]
        assert text == tokenizer.decode(made, skip_special_tokens=True)
    model.generation_config.eos_token_id = int(made[3])  # a text ends at its first end token
    stop = made.tolist().index(int(made[3]))
    assert greedy_texts(model, tokenizer, rows[2:], 7) == [tokenizer.decode(made[:stop], skip_special_tokens=True)]


def test_with_prompt_as_the_reference_code(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    (text,) = sample_texts(model, tokenizer, ["Rome is in"], ["x"], length=10, with_prompt=True)
    (bare,) = sample_texts(model, tokenizer, ["Rome is in"], ["x"], length=10)
    assert text.startswith("Rome is in")
    head = len(tokenizer("Rome is in")["input_ids"])
    assert bare.startswith(text.removeprefix("Rome is in")) and 0 < head < 10


def greedy(model: Any, tokenizer: Any, prompt: str, length: int) -> str:
    ids = list(tokenizer(prompt)["input_ids"])
    start = len(ids)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(tokenizer.decode(ids[start:]))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_greedy_matching(kind: str) -> None:
    model, tokenizer = tiny(kind)
    prompts = ["Rome is the capital of", "The Eiffel Tower is located in the city of Paris, and"]
    said = [greedy(model, tokenizer, prompt, 3).strip() for prompt in prompts]
    wrong = ["Timbuktu", "x" + said[1]]
    found = match_targets(model, tokenizer, [*prompts, *prompts], [*said, *wrong])
    whole = [_word_end(model, tokenizer, prompt, text) for prompt, text in zip(prompts, said, strict=True)]
    assert [one.starts for one in found] == [*whole, False, False]


def _word_end(model: Any, tokenizer: Any, prompt: str, said: str) -> bool:
    longer = greedy(model, tokenizer, prompt, 6).strip()
    return not longer[len(said) :][:1].isalnum()


def test_nothing_is_forced(tiny_llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only prompts are ever given: the first forward holds no token of the target."""
    model, tokenizer = tiny_llama
    seen: list[list[int]] = []
    real = decoding.pad
    monkeypatch.setattr(decoding, "pad", lambda rows, **how: seen.extend(map(list, rows)) or real(rows, **how))
    match_targets(model, tokenizer, ["Rome is in"], ["Italy"])
    assert seen == [tokenizer("Rome is in")["input_ids"]]


JUDGED = [
    ("", "Rome", {}, None),
    (" Ro", "Rome", {}, None),
    (" Rome", "Rome", {}, None),  # "Romeo" may follow
    (" Romeo", "Rome", {}, Match(False, False)),
    (" Paris", "Rome", {}, Match(False, False)),
    (" Rome, in Italy", "Rome", {}, Match(True, False)),
    (" Rome.", "Rome", {}, Match(True, True)),
    (" Rome\nand", "Rome", {}, Match(True, True)),
    (" Rome", "Rome", {"done": True, "ended": True}, Match(True, True)),
    (" Rome", "Rome", {"done": True}, Match(True, False)),
    (" Rome ", "Rome", {}, None),
    (" Rome and", "Rome", {}, Match(True, False)),
    (" Ro", "Rome", {"done": True, "ended": True}, Match(False, False)),
    (" The capital is Rome.", "Rome", {}, Match(False, False)),
    (" Th\ufffd", "Thé", {}, None),  # half a character
]


@pytest.mark.parametrize(("text", "target", "how", "want"), JUDGED)
def test_a_target_is_judged_where_the_answer_begins_and_by_whole_words(
    text: str, target: str, how: dict[str, bool], want: Match | None
) -> None:
    assert judge(text, target, **{"done": False, "ended": False, **how}) == want


def test_end_of_text_is_a_stop(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    said = greedy(model, tokenizer, "Rome is in", 1)
    ids = tokenizer("Rome is in")["input_ids"]
    with torch.no_grad():  # whatever is the likeliest first token becomes the end of the text
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    model.generation_config.eos_token_id = [first]
    assert match_targets(model, tokenizer, ["Rome is in"], [said]) == [Match(False, False)]


def test_chats_are_asked_in_the_template(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    old = tokenizer.chat_template
    assert not has_chat(tokenizer)
    try:
        tokenizer.chat_template = "{% for m in messages %}Q: {{ m.content }} A:{% endfor %}"
        said = greedy(model, tokenizer, "Q: Rome is in A:", 8).strip()
        target = said[: max(1, len(said) // 2)].rstrip()
        chat = match_targets(model, tokenizer, ["Rome is in"], [target], chat=True)[0]
        assert chat.starts == (not said[len(target)].isalnum())
        whole = match_targets(model, tokenizer, ["Rome is in"], [target], chat=False)[0]
        plain = match_targets(model, tokenizer, ["Q: Rome is in A:"], [target])[0]
        assert plain == chat and whole in (Match(False, False), Match(True, False), Match(True, True))
    finally:
        tokenizer.chat_template = old
