"""Editing and retrieval on the same facts, on a tiny model; and the words that the figures are put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from helpers.commands import write
from helpers.tiny import save_tiny, tiny
from neuraldb_faiss import Fact

FACTS = [
    {"subject": "Eiffel Tower", "prompt": "The {} is located in the city of", "target": "Rome",
     "metadata": {"paraphrase_prompts": ["I think that Eiffel Tower is in"], "neighborhood_prompts": ["Madrid is in"]}},
    {"subject": "Marie Curie", "prompt": "I know that {} was born in", "target": "Tokyo",
     "metadata": {"neighborhood_prompts": ["The Space Needle is in", "Apple was founded by"]}},
]  # fmt: skip


@pytest.fixture
def script(example: Callable[[str], ModuleType]) -> ModuleType:
    return example("rag_comparison")


def test_on_a_tiny_model(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, facts = save_tiny(tmp_path / "model"), write(tmp_path / "facts.jsonl", FACTS)
    capsys.readouterr()
    script.main(["--model", str(model), "--facts", str(facts), "--device", "cpu", "--json"])
    plain, retrieval, editing, stated = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in (plain, retrieval, editing, stated)] == [
        "unedited", "retrieval", "editing", "stated",
    ]  # fmt: skip
    assert plain["unchanged"] is None and plain["own"] == 0
    # Nothing is put before an edited model's prompts, and no neighbour names a subject.
    assert editing["tokens"] == plain["tokens"] < retrieval["tokens"] and editing["unchanged"] == 3
    assert plain["preparing"] == 0 < min(editing["preparing"], retrieval["preparing"], stated["preparing"])
    assert stated["tokens"] > plain["tokens"] and stated["unchanged"] == 3
    assert {one["chats"] for one in (plain, retrieval, editing, stated)} == {None}, "no chat template"


def test_questions_are_asked_as_chats_where_there_is_a_template(script: ModuleType, tmp_path: Path) -> None:
    model, tokenizer = tiny()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    try:
        facts = [Fact.from_dict({**fact, "questions": ["Where is {}?"]}) for fact in FACTS]
        figures, _, _, asked = script.compare(model, tokenizer, facts, tmp_path)
    finally:
        tokenizer.chat_template = None
    assert asked == 2 and all(one.chats is not None for one in figures)


def test_retriever(script: ModuleType) -> None:
    retriever = script.Retriever([Fact.from_dict(fact) for fact in FACTS])
    assert retriever.best("the birth of Marie Curie") == "I know that Marie Curie was born in Tokyo."
    assert retriever.best("Eiffel Tower") == "The Eiffel Tower is located in the city of Rome."


def test_what_is_said(script: ModuleType) -> None:
    """Who wins, by what, from the figures alone; draws are nobody's."""
    figures = [
        script.Figures("unedited", 0, 0, None, 6.0, 0.01, 0.0, 0),
        script.Figures("retrieval", 7, 5, 2, 14.0, 0.03, 0.002, 3),
        script.Figures("editing", 8, 4, 3, 6.0, 0.02, 60.0, 1),
        script.Figures("stated", 7, 5, 3, 12.0, 0.03, 0.1, 3),
    ]
    *table, first, second, third = script.show(figures, 8, 9, 10, 4).splitlines()
    assert table[2].split() == ["retrieval", "7/8", "5/9", "2/10", "3/4", "14.0", "0.030", "0.00"]
    assert first == "Retrieval wins by seconds before the first answer (0.002 against 0.1)."
    assert second == (
        "Editing wins by own prompts (8 against 7), tokens a prompt (6 against 12), seconds a prompt (0.02 against"
        " 0.03)."
    )
    assert third == "Stated wins nowhere here."


def test_wordings_and_files_that_cannot_be_used_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--wording", "{prompt}"])
    assert "--wording needs {fact} and {prompt}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: facts file nowhere does not exist"):
        script.main(["--facts", "nowhere"])
    with pytest.raises(SystemExit, match="holds no facts"):
        script.main(["--facts", str(write(tmp_path / "empty.jsonl", [""]))])
