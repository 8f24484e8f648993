"""A fact that its tokenizer cannot be heard with is left out and named; all others fire in their own prompts."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from helpers.tiny import OTHER_TOKENIZERS, TOKENIZERS, tiny, tiny_tokenizer
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import FactError, ModelError
from neuraldb_faiss.guard.own_prompt import unheard

FACTS = [
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome"),
    Fact("Rome", "{} is the capital of", "Spain"),
    Fact("中国", "{}的首都是", "东京"),
    Fact("北京", "I think that {} is in", "Italy"),
    Fact("O'Neill", "The language of {} is", "French"),
    Fact("Café Müller", "{} is in the city of", "Rome"),
    Fact("Zürich", "The city of {} is", "Paris"),
]
SNOWMAN = Fact("☃", "The city of {} is", "Paris")


@pytest.mark.parametrize("kind", TOKENIZERS + OTHER_TOKENIZERS)
def test_every_fact_fires_in_its_own_prompt(kind: str, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama", kind)
    can = [fact for number, fact in enumerate(FACTS) if number not in unheard(tokenizer, FACTS)]
    assert len(can) == len(FACTS) - (2 if kind == "words" else 0)  # "words" knows no Chinese word by itself
    db = build(can, model, tokenizer, tmp_path / "db", layer=1, residual="none")
    with db.attach(model, tokenizer) as handle:
        for fact in can:
            handle.clear_trace()
            with torch.no_grad():
                model(**tokenizer(fact.text, return_tensors="pt", return_token_type_ids=False))
            assert fact.id in {one for fire in handle.trace() for one in fire.fact_ids}, fact.subject


@pytest.mark.parametrize("kind", ["wordpiece", "uncased", "unigram", "words"])
def test_what_cannot_fire_is_left_out_and_named(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer = tiny("llama", kind)
    told: list[Progress] = []
    with caplog.at_level(logging.WARNING, "neuraldb_faiss"):
        db = build([FACTS[0], SNOWMAN], model, tokenizer, tmp_path / "db", layer=1, residual="none", report=told.append)
    assert [fact.subject for fact in db.facts()] == ["Eiffel Tower"]
    assert "'☃' in 'The city of ☃ is'" in caplog.text and "1 of 2 facts" in caplog.text
    assert {now.unheard for now in told} == {(SNOWMAN,)}
    with NeuralDB.open(tmp_path / "db", "rw") as db:
        told.clear()
        db.add([FACTS[1], SNOWMAN], model, tokenizer, report=told.append)
        assert [fact.subject for fact in db.facts()] == ["Eiffel Tower", "Rome"]
        assert {now.unheard for now in told} == {(SNOWMAN,)}
        with pytest.raises(FactError, match="none of the 1 facts could ever fire.*☃"):
            db.add([SNOWMAN], model, tokenizer)
    with pytest.raises(FactError, match="none of the 1 facts could ever fire.*☃"):
        build([SNOWMAN], model, tokenizer, tmp_path / "none", layer=1, residual="none")
    assert not (tmp_path / "none").exists()


def test_without_a_guard_nothing_is_asked_of_the_text(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama", "wordpiece")
    db = build([FACTS[0], SNOWMAN], model, tokenizer, tmp_path / "db", layer=1, residual="none", guard="none")
    assert len(db) == 2


def test_a_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders
    from transformers import PreTrainedTokenizerFast

    model, tokenizer = tiny("llama")
    core = Tokenizer.from_str(tiny_tokenizer("bytelevel").backend_tokenizer.to_str())
    core.decoder = decoders.CTC()
    odd = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    with pytest.raises(ModelError, match="CTC"):
        build(FACTS[:1], model, odd, tmp_path / "db", layer=1, residual="none")
    assert not (tmp_path / "db").exists()
    db = build(FACTS[:1], model, tokenizer, tmp_path / "db", layer=1, residual="none")
    with pytest.raises(ModelError, match="CTC"):
        db.attach(model, odd)


def test_many_facts_are_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuraldb_faiss.guard.own_prompt._AT_ONCE", 2)
    facts = [FACTS[0], SNOWMAN, FACTS[1], FACTS[6], SNOWMAN]
    assert unheard(tiny_tokenizer("wordpiece"), facts) == [1, 4]
