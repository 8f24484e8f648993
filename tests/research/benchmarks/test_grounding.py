"""The benchmark of stated facts measures what it says."""

from __future__ import annotations

from pathlib import Path

from helpers.tiny import tiny
from neuraldb_faiss.research.benchmarks import grounding


def test_grounding(tmp_path: Path) -> None:
    model, tokenizer = tiny()
    found = grounding.bench_grounding(tmp_path, facts=60, repeats=1, model=model, tokenizer=tokenizer)
    assert found["facts_stated"] >= 1 and found["tokens_added"] > 0 and found["first_token_ratio"] > 0
    assert {"build_seconds", "open_seconds", "add_ms", "remove_ms", "lookup_ms", "nothing_named_ms"} <= set(found)


def test_prompts_name_subjects() -> None:
    names = {grounding.subject(at) for at in range(40)}
    assert len(names) == 40
    for text in grounding.prompts(120)[:20]:
        assert grounding.CHARACTERS - 500 <= len(text) <= grounding.CHARACTERS
        assert any(name in text for name in names)
    assert "Who is the head of" not in " ".join(grounding.prompts(0))
