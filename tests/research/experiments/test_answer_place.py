"""The method `answer-place`: residuals at the last token of prompts that ask for a fact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import Run
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.edits.pipeline import Progress
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.models.decoding import greedy_texts
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.models.tokenization import chat_text, encode_prompt
from neuraldb_faiss.research.evaluation.methods import silent
from neuraldb_faiss.research.experiments import answer_place
from neuraldb_faiss.research.experiments.answer_place import AtPromptEnds, Settings, rows_of, solve

LAYER = 2
CHAT = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
ELSEWHERE = "The Space Needle is in"


@pytest.fixture
def opened(db: Path) -> Iterator[NeuralDB]:
    with NeuralDB.open(db) as found:
        yield found


@pytest.fixture
def chatting(loaded: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Whose tokenizer has a chat template, in which a turn ends with the text's end."""
    model, tokenizer = loaded
    tokenizer.chat_template = CHAT
    yield model, tokenizer
    tokenizer.chat_template = None


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0]
    return found


def test_rows_begin_with_prompts_and_never_use_the_facts_own_questions(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    fact = Fact("Paris", "The boss of {} is", "Rome", metadata={"questions": ["Who?"], "paraphrases": ["{} obeys"]})
    rows = rows_of(model, tokenizer, fact, ["Apple"])
    texts = [tokenizer.decode(row.ids[: row.last + 1]) for row in rows]
    assert texts[0] == tokenizer.decode(encode_prompt(tokenizer, fact.text)) and rows[0].raw
    assert not any("Who?" in text or "obeys" in text for text in texts)
    assert any("What is the boss of Paris?" in text for text in texts)
    for row in rows:
        assert (*row.ids, row.targets[-1])[row.last + 1 :] == row.targets


def test_messages_end_with_their_turn(chatting: tuple[Any, Any]) -> None:
    model, tokenizer = chatting
    fact = Fact("Paris", "{} is in", "Rome")
    asked = encode_prompt(tokenizer, chat_text(tokenizer, [fact.text]), special=False)
    (row,) = [row for row in rows_of(model, tokenizer, fact, []) if list(row.ids[: row.last + 1]) == asked]
    assert row.targets[-1] in end_ids(model, tokenizer)
    assert tokenizer.decode(row.targets[:-1]) == tokenizer.decode(tokenizer(fact.statement)["input_ids"])


def test_only_the_last_token_of_a_prompt_that_asks_is_changed(loaded: tuple[Any, Any], opened: NeuralDB) -> None:
    model, tokenizer = loaded
    fact = opened.facts()[0]
    ids, other = (encode_prompt(tokenizer, text) for text in (fact.text, ELSEWHERE))
    before, elsewhere = logits(model, ids), logits(model, other)
    site = find_site(model, LAYER)
    with AtPromptEnds(Grounder(opened.snapshot), {fact.identity: torch.ones(site.d2)}, model, tokenizer, site) as ends:
        assert torch.equal(logits(model, ids), before)  # not expected yet
        assert ends.expect(fact.text) == fact.text and ends.expect(ELSEWHERE) == ELSEWHERE
        assert ends.expect(f"{fact.subject} has a colour, which is") is not None
        after = logits(model, [*ids, 7])  # what follows a prompt is an answer
        assert torch.equal(after[: len(ids) - 1], before[:-1])
        assert not torch.allclose(after[len(ids) - 1], before[-1])
        assert torch.equal(logits(model, other), elsewhere)
        with ends.disabled():
            assert torch.equal(logits(model, ids), before)
    assert torch.equal(logits(model, ids), before)


def test_a_solved_fact_is_said(loaded: tuple[Any, Any], opened: NeuralDB) -> None:
    model, tokenizer = loaded
    facts, site = opened.facts()[:1], find_site(model, LAYER)
    told: list[Progress] = []
    settings = Settings(layer=LAYER, clamp=8.0, steps=24)
    residuals = solve(model, tokenizer, site, facts, opened.config.prefixes, settings, told.append)
    assert [progress.done for progress in told] == [0, 1]
    solved = {facts[0].identity: residuals[0]}
    with AtPromptEnds(Grounder(opened.snapshot), solved, model, tokenizer, site) as ends:
        ends.expect(facts[0].text)
        (said,) = greedy_texts(model, tokenizer, [encode_prompt(tokenizer, facts[0].text)], 4)
    assert facts[0].target in said


def test_the_experiment_asks_it_too(run: Run, tiny_model: Path, cases_file: Path, tmp_path: Path) -> None:
    settings = ('methods=["answer-place"]', "method_settings={answer-place={layer=2,steps=2}}", "length=4",
                "build={layer=1, steps=4}")  # fmt: skip
    done = run("experiment", "answers", "--model", tiny_model, "--cases", cases_file, "--facts", 2, "--out",
               tmp_path / "out", *(part for one in settings for part in ("--set", one)), "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = {row["measure"]: row for row in json.loads(done.stdout)}
    assert rows["elsewhere_same"]["value"] == 1.0
    header = json.loads((tmp_path / "out" / "runs" / "answer-place.jsonl").read_text().splitlines()[0])
    assert header["identity"]["layer"] == 2 and header["identity"]["clamp"] == Settings().clamp


def test_unknown_settings_are_named(loaded: tuple[Any, Any], opened: NeuralDB) -> None:
    with pytest.raises(EvaluationError, match="are layer, lr, clamp, steps, stop_loss, not depth"):
        answer_place.delivery(opened, opened.facts(), *loaded, {"depth": 3}, silent)
    assert answer_place.delivery(opened, opened.facts(), *loaded, {}, silent).identity["layer"] == 3  # of 4
