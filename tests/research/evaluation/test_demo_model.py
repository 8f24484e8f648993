"""What the demo model knows, seen through every kind of measurement."""

from __future__ import annotations

from typing import Any

import pytest

from neuraldb_faiss.models.tokenization import has_chat
from neuraldb_faiss.research.evaluation.generation import match_targets, sample_texts
from neuraldb_faiss.research.evaluation.scoring import score_pairs
from neuraldb_faiss.research.evaluation.text import fluency

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"


def test_teacher_forcing_and_greedy_decoding_agree(demo_model: tuple[Any, Any]) -> None:
    scores = score_pairs(*demo_model, [(PROMPT, "Paris"), (PROMPT, "Rome")])
    assert scores[PROMPT, "Paris"].nll + 2 < scores[PROMPT, "Rome"].nll
    assert scores[PROMPT, "Paris"].all_correct and not scores[PROMPT, "Rome"].all_correct
    paris, rome = match_targets(*demo_model, [PROMPT, PROMPT], ["Paris", "Rome"])
    assert paris.starts and not rome.starts


def test_the_demo_model_answers_in_its_chat_template(demo_model: tuple[Any, Any]) -> None:
    assert has_chat(demo_model[1])
    question = "What is the capital of France?"
    (told,) = match_targets(*demo_model, [question], ["The capital of France is Paris"], chat=True)
    assert told.starts and told.stops


def test_fluency_of_its_texts(demo_model: tuple[Any, Any]) -> None:
    (text,) = sample_texts(*demo_model, [PROMPT], ["x"], length=60)
    assert 4 < fluency([text]) < 7 and len(text.split()) > 20
