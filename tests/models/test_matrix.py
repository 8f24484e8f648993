"""Model x check: every supported architecture does everything, and every other one is told why not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.matrix import CHECKS, EXPECTED, Subject
from helpers.tiny import KINDS, REFUSED_KINDS, SEEING_KINDS, tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.solver.editor import Editor

# What people mostly use runs always; the rest is `slow`.
COMMON = (
    "llama", "mistral", "ministral", "qwen2", "qwen3", "qwen3_5_text", "smollm3", "gemma", "gemma2", "gemma3_text",
    "olmo2", "olmo3", "phi", "phi3", "stablelm", "falcon", "cohere", "gpt2", "gptj", "gpt_neo", "gpt_neox", "opt",
    "granite", "starcoder2", "glm", "helium", "exaone4", "gemma3", "qwen2_vl", "llava",
)  # fmt: skip


def _kinds() -> Iterator[object]:
    for kind in (*KINDS, *SEEING_KINDS):
        yield kind if kind in COMMON else pytest.param(kind, marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=_kinds())
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A model of one kind with a database of one fact."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products gain nothing from more
    made = Subject(request.param, tmp_path_factory.mktemp(request.param) / "db")
    yield made
    made.db.close()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("check", CHECKS)
def test_matrix(subject: Subject, check: str) -> None:
    told = EXPECTED.get((subject.kind, check))
    if told is None:
        CHECKS[check](subject)
    else:
        with pytest.raises(ModelError, match=told):
            CHECKS[check](subject)


@pytest.mark.slow
def test_the_demo_model(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    """With its own weights."""
    subject = Subject("demo", tmp_path / "db", demo_model, layer=None)
    for check in CHECKS.values():
        check(subject)
    assert subject.way() == "packed block"
    subject.db.close()


def test_the_fast_way_serves_it(subject: Subject) -> None:
    """Prompts are cut and lower layers spared: nothing fell back to whole forward passes, several times slower."""
    ways = {subject.way(kind) for kind in ("memit", "pmet") if (subject.kind, kind) not in EXPECTED}
    assert ("full" in ways) == (subject.kind == "openai-gpt")  # which has no cache


@pytest.mark.parametrize("kind", REFUSED_KINDS)
def test_what_cannot_work_says_why(kind: str) -> None:
    model, tokenizer = tiny(kind)
    with pytest.raises(ModelError, match=REFUSED_KINDS[kind]) as told:
        Editor.new(model, tokenizer, layer=1)
    assert "\n" not in str(told.value)
    if kind != "paligemma":
        assert "--ffn-module" in str(told.value)


def test_the_page_shows_the_matrix() -> None:
    """docs/models.md was written after the last architecture was added: scripts/model_matrix.py prints it."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    page = page.split("## After attaching")[0]
    page = page[page.index("| `llama` |") :]  # before them stand models by their names
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    shown = {line.split("`")[1] for line in rows}
    assert shown == {*KINDS, *SEEING_KINDS, *REFUSED_KINDS}
    assert "FAILS" not in page
