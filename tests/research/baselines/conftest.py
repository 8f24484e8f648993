"""A place with statistics for the tiny model of a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.weight_edits import write_texts
from neuraldb_faiss.research.baselines import Statistics, make_statistics


@pytest.fixture
def take(tmp_path: Path) -> Callable[..., Statistics]:
    """Makes statistics of some layers of a model and gives them."""

    def made(model: Any, tokenizer: Any, layers: list[int]) -> Statistics:
        make_statistics(model, tokenizer, str(write_texts(tmp_path / "texts.jsonl")), tmp_path / "c0", layers=layers)
        return Statistics(tmp_path / "c0")

    return made
