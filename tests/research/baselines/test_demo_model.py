"""A real model says what was written into its weights, and afterwards what it said before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuraldb_faiss import Fact
from neuraldb_faiss.research.baselines import edited, make_statistics

FACTS = [
    Fact("Danielle Darrieux", "The mother tongue of {} is", "English", target_true="French"),
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome", target_true="Paris"),
]


def margins(model: Any, tokenizer: Any) -> list[float]:
    """log P(new) - log P(true) of the first token of each fact's answers."""
    found = []
    for fact in FACTS:
        new, true = (tokenizer(f" {answer}")["input_ids"][0] for answer in (fact.target, fact.target_true))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer(fact.text)["input_ids"]])).logits[0, -1]
        found.append(float(logits[new] - logits[true]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memit", "alphaedit"])
def test_the_demo_model_says_what_was_written(
    name: str, demo_model: Any, test_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, tokenizer = demo_model
    folder = tmp_path_factory.getbasetemp() / "demo-statistics"  # of both methods
    text = str(test_data / "wikipedia_articles.jsonl.gz")
    make_statistics(model, tokenizer, text, folder, layers=[3], tokens=6000, max_length=256)
    before = margins(model, tokenizer)
    assert max(before) < 0
    with edited(name, model, tokenizer, FACTS, layers=[3], statistics=folder, cache=folder / "residuals") as edit:
        assert min(margins(model, tokenizer)) > 1
        assert max(edit.losses) < 0.5
    assert margins(model, tokenizer) == before
