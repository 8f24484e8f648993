"""What is asked goes on behind the very tokens that a fact was solved behind, whatever the tokenizer and the script."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from helpers.tiny import TOKENIZERS, tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.inference.ask import ask
from neuraldb_faiss.inference.explain import explain
from neuraldb_faiss.inspector.views import Looker
from neuraldb_faiss.models import encode_prompt
from neuraldb_faiss.research.evaluation.generation import Match, greedy_texts, judge
from neuraldb_faiss.research.evaluation.scoring import score_pairs, separators_of
from neuraldb_faiss.research.experiments.contexts import says
from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.settings import Limits
from neuraldb_faiss.solver.prefixes import generate_prefixes

FACT = Fact("Marie Curie", "I think that {}", "in")
HOW: dict[str, Any] = {"layer": 2, "clamp": 60.0, "lr": 1.0, "steps": 15, "max_steps": 0, "weight_decay": 0.0}
TEMPLATES = ("$A", "<s> $A", "$A </s>", "<s> $A </s>")


def around(template: str) -> tuple[Any, Any]:
    """A model, and a tokenizer that puts special tokens around every text."""
    model, words = tiny("llama", "metaspace")
    words = copy.deepcopy(words)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return model, words


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_tokenizer_that_puts_tokens_around_a_text(template: str, tmp_path: Path) -> None:
    model, words = around(template)
    ids = encode_prompt(words, FACT.text)
    assert (words.bos_token_id in ids, words.eos_token_id in ids) == ("<s>" in template, False)
    other = around(template.removesuffix(" </s>"))[1]
    assert generate_prefixes(model, words) == generate_prefixes(model, other)
    with build([FACT], model, words, tmp_path / "db", **HOW) as db:
        assert all(fact.took for fact in db.facts())
        with db.attach(model, words) as handle:
            answer = ask(db, handle, model, words, FACT.text, compare=True)
            assert score_pairs(model, words, [(FACT.text, FACT.target)])[FACT.text, FACT.target].all_correct
            served = Prompts(model, words, Limits()).of_text(FACT.text)
            (text,) = greedy_texts(model, words, [served], answer.new)
        assert list(answer.ids[: -answer.new]) == ids == served
        assert answer.edited == text and text.startswith(FACT.target)
        assert [fact.id for fact in answer.fired[0].facts] == [FACT.id]
        found, _ = explain(db, model, words, FACT.text)
        assert len(found) == len(ids) and found[-1].fired
        look = Looker(db, model, words).look(FACT.text, max_new_tokens=1)
        assert [one.position for one in look.tokens if one.fired] == [one.position for one in found if one.fired]


@pytest.mark.parametrize(
    "fact",
    [Fact("日本", "他说{}的首都是", "伦敦"), Fact("日本", "{}的首都是", "伦敦", metadata={"separator": " "}),
     Fact("Marie Curie", '{} said "', "Rome"), Fact("Marie Curie", "{} is A-", "17", metadata={"separator": ""})],
    ids=lambda fact: fact.text + fact.separator + fact.target,
)  # fmt: skip
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_what_is_solved_for_is_what_is_judged(fact: Fact, kind: str, tmp_path: Path) -> None:
    model, words = tiny("llama", kind)
    with build([fact], model, words, tmp_path / "db", **HOW) as db:
        stored = next(iter(db.facts()))
        assert stored.separator == fact.separator
        with db.attach(model, words) as handle:
            pair = fact.text, fact.target
            scored = score_pairs(model, words, [pair], separators=separators_of([fact]))[pair]
            other = score_pairs(model, words, [pair], separators={fact.text: " " if not fact.separator else ""})[pair]
            answer = ask(db, handle, model, words, fact.text)
            assert list(answer.ids[: len(answer.ids) - answer.new]) == encode_prompt(words, fact.text)
    assert scored.nll == pytest.approx(stored.nll, abs=1e-3)
    assert other.nll != pytest.approx(stored.nll, abs=1e-3)


@pytest.mark.parametrize("separator", ["", " "])
def test_the_answer_begins_as_the_fact_says(separator: str, tmp_path: Path) -> None:
    model, words = tiny("llama", "bytelevel")
    fact = Fact("Marie Curie", "I think that {}", "was", metadata={"separator": separator})
    with build([fact], model, words, tmp_path / "db", **HOW) as db, db.attach(model, words) as handle:
        assert ask(db, handle, model, words, fact.text).edited.startswith(separator + "was")


@pytest.mark.parametrize(
    ("text", "target", "starts", "stops"),
    [("伦敦", "伦敦", True, True), (" 伦敦。它", "伦敦", True, True), ("伦敦是一个", "伦敦", True, False),
     ("伦", "伦敦", False, False), ("2008年", "2008", True, False), ("ลอนดอนเป็น", "ลอนดอน", True, False),
     ("Romers", "Rome", False, False), ("런던던", "런던", False, False)],
)  # fmt: skip
def test_a_greedy_text_is_judged_by_its_script(text: str, target: str, starts: bool, stops: bool) -> None:
    assert judge(text, target, done=True, ended=text == target) == Match(starts, stops)
    assert says(text, target) == starts


def test_an_older_databases_prompts_are_read(tmp_path: Path) -> None:
    model, words = tiny("llama", "bytelevel")
    build([FACT], model, words, tmp_path / "db", layer=1, residual="none").close()
    with NeuralDB.open(tmp_path / "db") as db:
        assert [fact.separator for fact in db.facts()] == [" "]
