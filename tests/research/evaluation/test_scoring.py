"""Batched teacher forcing equals one unpadded row at a time, attached or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.errors import EvaluationError, FactError
from neuraldb_faiss.research.evaluation.scoring import Scored, score_pairs

PAIRS = [
    ("The Eiffel Tower is located in the city of", "Rome"),
    ("Rome", "is the capital of Italy"),
    ("I think that Tokyo is the city in Japan, and Berlin is the capital of", "Germany"),
    ("LeBron James plays the sport of", "basketball"),
    ("Rome", "is"),
    ("Paris is the capital of ", " France "),  # white space at the seam is one space
]


def plain(model: Any, tokenizer: Any, prompt: str, target: str) -> Scored:
    """The definition: one row, no padding, full logits."""
    head = tokenizer(prompt.strip())["input_ids"]
    ids = tokenizer(f"{prompt.strip()} {target.strip()}")["input_ids"]
    assert ids[: len(head)] == head  # so here, with this tokenizer, " target" begins a new token
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    steps = logits[len(head) - 1 : -1].log_softmax(-1)
    want = torch.tensor(ids[len(head) :])
    nll = -steps[torch.arange(len(want)), want].mean()
    return Scored(float(nll), tuple((steps.argmax(-1) == want).tolist()))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "bloom", "gemma2", "opt"])
@pytest.mark.parametrize("max_tokens", [1, 60, 4096])
def test_as_one_by_one(kind: str, max_tokens: int) -> None:
    model, tokenizer = tiny(kind)
    found = score_pairs(model, tokenizer, PAIRS, max_tokens=max_tokens)
    for pair in PAIRS:
        want = plain(model, tokenizer, *pair)
        assert found[pair].correct == want.correct
        assert found[pair].nll == pytest.approx(want.nll, abs=1e-4)


def test_scores_of_an_attached_model_are_those_of_plain_forwards(tiny_llama: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    with build([fact], model, tokenizer, tmp_path / "db", layer=1, steps=15) as db:
        bare = score_pairs(model, tokenizer, PAIRS, max_tokens=80)
        with db.attach(model, tokenizer):
            edited = score_pairs(model, tokenizer, PAIRS, max_tokens=80)
            want = {pair: plain(model, tokenizer, *pair) for pair in PAIRS}
        assert edited[PAIRS[0]].nll < bare[PAIRS[0]].nll - 0.1
        for pair in PAIRS:
            assert edited[pair].nll == pytest.approx(want[pair].nll, abs=1e-4)
        assert score_pairs(model, tokenizer, PAIRS, max_tokens=80) == bare


def test_targets_of_one_token_share_a_row(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    words = [
        word for word in ("Rome", "Paris", "Berlin", "Italy", "the") if len(tokenizer(f" {word}")["input_ids"]) == 1
    ]
    pairs = [(prompt, word) for prompt in ("Rome is in", "The Eiffel Tower is in") for word in words]
    assert len(words) > 1
    rows: list[int] = []
    with model.register_forward_pre_hook(lambda *a, **k: rows.append(len(a[2]["input_ids"])), with_kwargs=True):
        found = score_pairs(model, tokenizer, [*pairs, ("Rome is in", "the capital")])
    assert sum(rows) == 3
    for pair in pairs:
        want = plain(model, tokenizer, *pair)
        assert found[pair].correct == want.correct and found[pair].nll == pytest.approx(want.nll, abs=1e-4)


def test_bos_of_the_tokenizer() -> None:
    model, tokenizer = tiny("llama", "metaspace")
    found = score_pairs(model, tokenizer, [("Rome is the capital of", "Italy")])
    ids = tokenizer("Rome is the capital of Italy")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    start = len(tokenizer("Rome is the capital of")["input_ids"])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    want = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(ids[start:]))
    (one,) = found.values()
    assert one.nll == pytest.approx(float(want), abs=1e-4) and len(one.correct) == len(ids) - start


def test_texts_that_cannot_be_scored_are_refused(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    with pytest.raises(FactError, match="target is empty"):
        score_pairs(model, tokenizer, [("Rome is", "  ")])
    with pytest.raises(EvaluationError, match="has no token"):
        score_pairs(model, tokenizer, [(" ", "Rome")])
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="not finite"):
        score_pairs(model, tokenizer, PAIRS)
    assert score_pairs(model, tokenizer, []) == {}
