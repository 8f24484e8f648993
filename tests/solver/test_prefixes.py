"""Prefixes are the model's own, repeatable, and fit in front of any prompt."""

from __future__ import annotations

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver import generate_prefixes
from neuraldb_faiss.solver.prefixes import SEEDS, contexts


@pytest.mark.parametrize("tokenizer_kind", ["bytelevel", "metaspace"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj"])
def test_five_repeatable_prefixes(kind: str, tokenizer_kind: str) -> None:
    model, tokenizer = tiny(kind, tokenizer_kind)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    prefixes = generate_prefixes(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert generate_prefixes(model, tokenizer) == prefixes
    assert generate_prefixes(model, tokenizer, seed=1) != prefixes
    assert [prefix.startswith(seed) for prefix, seed in zip(prefixes, SEEDS, strict=True)] == [True] * 5
    for prefix in prefixes:
        assert not set("{}\n") & set(prefix) and prefix == prefix.strip()
        assert not any(token in prefix for token in tokenizer.all_special_tokens)


def test_contexts_keep_the_subject_in_sight() -> None:
    fact = Fact("Rome", "The city {} is in", "Spain")
    places = contexts(fact, ["One", "Two words"])
    assert [text for text, _ in places] == [fact.text, f"One. {fact.text}", f"Two words. {fact.text}"]
    assert [text[start:end] for text, (start, end) in places] == ["Rome"] * 3
