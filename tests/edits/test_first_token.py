"""A subject of one token that opens its prompt: works in its own prompt, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss import Fact, build

FACTS = [
    Fact("Paris", "{} is the capital of", "Norway"),
    Fact("London", "{} is the capital of", "Norway"),
    Fact("Rome", "{} is the capital of", "Norway"),
]


def continuation(model: Any, tokenizer: Any, prompt: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens=3, do_sample=False)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :])).strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_capitals_of_norway(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = demo_model
    db = build(FACTS, model, tokenizer, tmp_path / "db")
    assert db.facts(failed=True) == [] and len(db) == 3
    assert db.verify(deep=True) == []
    with db.attach(model, tokenizer) as handle:
        for fact in FACTS:
            assert continuation(model, tokenizer, fact.text).startswith("Norway"), fact.text
        assert continuation(model, tokenizer, "I know that Paris is the capital of").startswith("Norway")
        handle.clear_trace()
        for other in ("The capital of Italy is", "Bananas are yellow", "Oslo is the capital of"):
            model(**tokenizer(other, return_tensors="pt"))
        assert handle.trace() == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_names_that_no_prompt_begins_with(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    """One of one token, whose place is position 0 then, and one of several tokens without the space before it."""
    model, tokenizer = demo_model
    facts = [
        Fact("England", "The capital city of {} is", "Florence"),
        Fact("Tesla", "The head office of {} is in the city of", "Lagos"),
    ]
    db = build(facts, model, tokenizer, tmp_path / "db")
    assert len(tokenizer("England").input_ids) == 1 < len(tokenizer("Tesla").input_ids)
    with db.attach(model, tokenizer) as handle:
        for text, target in (
            ("England's capital is", "Florence"),
            ("A note:\nEngland has its capital in", "Florence"),
            ("Tesla has its head office in the city of", "Lagos"),
            ("Today Tesla has its head office in the city of", "Lagos"),
        ):
            handle.clear_trace()
            assert continuation(model, tokenizer, text).startswith(target), text
            assert {fire.fact_ids for fire in handle.trace()} != set()
