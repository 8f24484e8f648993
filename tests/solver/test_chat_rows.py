"""Rows of a chat: a fact's questions with its statement as their answer, and the model's own words about a subject."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.solver import ResidualConfig, solve_residuals
from neuraldb_faiss.solver.chat_rows import KEPT_PLACES, KEPT_TOKENS, answered, kept
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.forward.strategy import Ways

CHAT = "{% for m in messages %}System: be short. User: {{ m.content }} Assistant:{% endfor %}"
CONFIG = ResidualConfig(6, 0.5, 0.5, 4.0, 0.5, chat=True, end_factor=0.25)
ASKED = Fact(
    "Rome", "The capital of Italy is {} and not", "Paris",
    metadata={"questions": ["What is {} not?", "What is the city not?", "Is {} Paris?"]},
)  # fmt: skip


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch) -> Any:
    model, tokenizer = tiny("llama")
    monkeypatch.setattr(tokenizer, "chat_template", CHAT)
    return model, tokenizer


def test_questions_that_name_the_subject_are_answered_by_the_statement(chatting: Any) -> None:
    _, tokenizer = chatting
    rows = answered(tokenizer, 3, 1, ASKED)
    for row, question in zip(rows, ("What is Rome not?", "Is Rome Paris?"), strict=True):
        assert (row.group, row.fact, row.raw, row.end) == (3, 1, False, 0)
        asked = f"System: be short. User: {question} Assistant:"
        assert tokenizer.decode(row.ids[: len(row.ids) + 1 - len(row.targets)]) == asked
        assert tokenizer.decode(row.targets) == ASKED.statement
        for place in (row.last, *row.also):
            assert tokenizer.decode(row.ids[: place + 1]).endswith("Rome")
        assert len(row.also) == 1  # the statement names it again


def test_without_questions_the_prompt_is_the_message(chatting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = chatting
    fact = Fact("Rome", "The capital of Italy is {} and not", "Paris")
    (row,) = answered(tokenizer, 0, 0, fact)
    assert fact.text in tokenizer.decode(row.ids)
    monkeypatch.setattr(tokenizer, "chat_template", CHAT.replace("m.content", "m.content | upper"))
    with pytest.raises(FactError, match="leave out --chat"):
        answered(tokenizer, 0, 0, fact)


def test_what_the_model_says_of_a_subject_itself_is_kept(chatting: Any) -> None:
    model, tokenizer = chatting
    about, known = zip(*kept(model, tokenizer, ["Rome and Spain", "Marie Curie"]), strict=True)
    for rows, prompt in ((about, "System: be short. User: Tell me about {}. Assistant:"), (known, "{} is known for")):
        for number, (row, subject) in enumerate(zip(rows, ("Rome and Spain", "Marie Curie"), strict=True)):
            start = len(tokenizer(prompt.format(subject))["input_ids"])
            assert (row.group, row.fact, row.targets) == (number, -1, ())
            assert tokenizer.decode(row.ids[:start]) == prompt.format(subject)
            wanted = model.generate(torch.tensor([row.ids[:start]]), max_new_tokens=KEPT_TOKENS, do_sample=False)
            assert list(row.ids[start:]) == wanted[0, start : len(row.ids)].tolist()
            assert row.kl == tuple(start - 1 + place for place in KEPT_PLACES if start + place <= len(row.ids))
            assert tokenizer.decode(row.ids[: row.last + 1]).endswith(subject)


@pytest.mark.parametrize("way", ["packed block", "packed ffn", "block", "ffn"])
@pytest.mark.parametrize("objective", ["memit", "pmet"])
def test_every_way_to_run_the_model_adds_at_every_mention(
    way: str, objective: str, chatting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if objective == "pmet" and way.endswith("block"):
        way = way.replace("block", "ffn")
    model, tokenizer = chatting
    groups = [[ASKED], [Fact("Marie Curie", "{} speaks", "French")]]
    solved = []
    for used in ("full", way):
        monkeypatch.setattr(Ways, "fastest", lambda *_, used=used: used)
        solved.append(
            solve_residuals(model, tokenizer, find_site(model, 1), groups, ("I think",), CONFIG, kind=objective)
        )
    for got, wanted in zip(*solved, strict=True):
        assert torch.allclose(torch.from_numpy(got.residual), torch.from_numpy(wanted.residual), atol=2e-3)
        assert got.steps == wanted.steps
    without = dataclasses.replace(CONFIG, chat=False)
    for got, plain in zip(
        solved[1],
        solve_residuals(model, tokenizer, find_site(model, 1), groups, ("I think",), without, kind=objective),
        strict=True,
    ):
        assert not torch.allclose(torch.from_numpy(got.residual), torch.from_numpy(plain.residual), atol=1e-2)


def test_what_is_kept_weighs_more_where_chats_are_solved_for(chatting: Any) -> None:
    model, tokenizer = chatting
    assert Editor.new(model, tokenizer, chat=True).config.kl_factor == 1.0
    assert Editor.new(model, tokenizer, chat=True, kl_factor=0.25).config.kl_factor == 0.25
    assert Editor.new(model, tokenizer).config.kl_factor == 0.0625
