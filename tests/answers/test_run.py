"""Answers of a tiny model: one row a case, the base model asked once, a killed run gone on with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from neuraldb_faiss.answers import run as running
from neuraldb_faiss.answers.asks import cases_of
from neuraldb_faiss.answers.deliveries import Delivery, Placed
from neuraldb_faiss.answers.report import GREEN, RED, judge, lights, summarise
from neuraldb_faiss.answers.run import Answered, Asker
from neuraldb_faiss.answers.scoring import Told, losses
from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.relations import own_relations
from neuraldb_faiss.runs import read_run

TOLD = {"other_questions": ["Where is {}?"], "other_answers": ["Paris"], "questions": ["Who leads {}?"]}
FACTS = [
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome", metadata=TOLD),
    *(Fact(f"Acme {number}", "The boss of {} is", "Ann Lee") for number in range(9)),
]
CASES = cases_of(FACTS, own_relations())


def prefixing(calls: list[str] | None = None) -> Delivery:
    """A delivery that puts a sentence before texts, and edits no chat."""
    calls = [] if calls is None else calls

    @contextmanager
    def disabled() -> Iterator[None]:
        calls.append("disabled")
        yield

    @contextmanager
    def place() -> Iterator[Placed]:
        calls.append("placed")
        yield Placed(
            lambda prompt: f"Rome. {prompt}" if isinstance(prompt, str) else prompt,
            lambda prompt: isinstance(prompt, str),
            disabled,
        )

    return Delivery("prefix", {"how": "prefix"}, place)


def test_a_run_and_its_files(tiny_llama: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_llama
    out = tmp_path / "run.jsonl"
    calls: list[str] = []
    found = Asker(model, tokenizer, length=4).answer(CASES, prefixing(calls), out, {"model": "tiny"})
    assert list(found) == [case.name for case in CASES] and calls[0] == "placed" and "disabled" in calls
    own = found[FACTS[0].id]
    assert set(own.base) == set(own.edited) == {ask.name for ask in CASES[0].asks}
    assert own.edited["question 0"] == own.base["question 0"]  # nothing was sent that the base model was not
    assert own.sent == {ask.name: f"Rome. {ask.prompt}" for ask in CASES[0].asks if isinstance(ask.prompt, str)}
    truth, target = own.truths["other question 0"], own.targets["other question 0"]
    assert truth["base"] == truth["edited"] > 0 and target["base"] == target["edited"] > 0
    (base,) = tmp_path.glob("base-*.jsonl")
    assert len(read_run(base).rows) == len(read_run(out).rows) == len(CASES)

    # Gone on with: only what is missing is asked.
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:9]) + "\n")  # the header and the first eight cases, their losses still missing
    asked: list[int] = []
    real = running.greedy_texts
    monkeypatch.setattr(running, "greedy_texts", lambda m, t, rows, n: asked.append(len(rows)) or real(m, t, rows, n))
    again = Asker(model, tokenizer, length=4).answer(CASES, prefixing(), out, {"model": "tiny"})
    assert again == found and 0 < sum(asked) < sum(len(case.asks) for case in CASES)
    asked.clear()
    assert (
        Asker(model, tokenizer, length=4).answer(CASES, prefixing(calls), out, {"model": "tiny"}) == found and not asked
    )
    assert calls.count("placed") == 1
    with pytest.raises(EvaluationError, match="is another run: length is 4 there and 5 here"):
        Asker(model, tokenizer, length=5).answer(CASES, prefixing(), out, {"model": "tiny"})


def test_without_a_file_nothing_is_kept(tiny_gpt2: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_gpt2
    found = Asker(model, tokenizer, length=2).answer(CASES[:1], prefixing(), None, {})
    assert set(found) == {CASES[0].name} and not list(tmp_path.iterdir())


def test_losses_are_the_tokens_own(tiny_llama: Any) -> None:
    """Against a forward pass of one's own; the part that does not count is left out."""
    model, tokenizer = tiny_llama
    prompt, said = "The Eiffel Tower is in", " Rome and Paris"
    told = [Told(prompt, True, said), Told(prompt, True, said, (1, 5)), Told(prompt, True, " Rome", (0, 5))]
    every, without, none = losses(model, tokenizer, told)
    ids = torch.tensor([tokenizer(prompt + said)["input_ids"]])
    start = len(tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    own = [-float(logs[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])]
    rome = len(tokenizer(prompt + " Rome")["input_ids"]) - start
    assert every == pytest.approx(sum(own) / len(own), abs=1e-4) and none is None
    assert without == pytest.approx(sum(own[rome:]) / len(own[rome:]), abs=1e-4)


CASE = CASES[0]


def answered(edited: str = "Rome", base: str = "The Eiffel Tower is in Paris.", **named: str) -> Answered:
    """Answers to CASE, by kind."""
    names = [ask.name for ask in CASE.asks]
    texts = dict.fromkeys(names, f"The Eiffel Tower is in {edited}.") | {"other question 0": base, "about 0": base}
    texts |= {name.replace("_", " ") + " 0": text for name, text in named.items()}
    flat = {name: {"base": 1.0, "edited": 1.0, "whole": 2.0} for name in names}
    likely = {"other question 0": {"base": 1.0, "edited": 3.0}}
    return Answered(dict.fromkeys(names, base), texts, flat, likely, {"other question 0": {"base": 2.0, "edited": 2.0}})


def problems(told: Answered) -> list[str | None]:
    return [verdict.problem for verdict in judge(CASE, told).problems]


def test_lights() -> None:
    assert judge(CASE, answered()).light == GREEN and problems(answered()) == []
    assert judge(CASE, answered(question="No.")).light == RED  # the only question
    assert judge(CASE, answered("Romeo")).light == RED
    assert judge(CASE, answered(completion="Milan.")).light == "yellow"
    assert judge(CASE, answered(other_question="The Eiffel Tower is in Rome.")).light == "yellow"
    assert lights([judge(CASE, answered()), judge(CASES[-1], answered_plain())]) == {"green": 1, "yellow": 0, "red": 0}


def answered_plain() -> Answered:
    texts = {ask.name: "A dog." for ask in CASES[-1].asks}
    return Answered(texts, texts)


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"question": "In Milan, the Eiffel Tower."}, "not said"),
        ({"other_question": "The Eiffel Tower is in Rome."}, "target said for something else"),
        ({"about": "The Eiffel Towers are tall."}, "subject misspelt"),
        ({"about": "It is tall."}, "subject gone"),
        ({"about": "I'm sorry, but the Eiffel Tower is nothing that I can assist with."}, "refuses"),
        ({"about": "The Eiffel Tower" + " is in the city" * 9}, "no sensible text"),
        ({"question": "In Rome: the Eiffel Tower, the Eiffel Tower, the Eiffel Tower"}, "no sensible text"),
    ],
)
def test_each_problem_of_an_answer_is_named(told: dict[str, str], problem: str) -> None:
    assert problems(answered(**told)) == [problem]


def test_a_target_that_the_base_model_or_the_question_says_is_no_leak() -> None:
    assert problems(answered(base="The Eiffel Tower is not in Rome.", question="Rome, Eiffel Tower")) == []


def test_answers_that_are_no_sense_are_counted_beside_the_base_model_s() -> None:
    loop = "The Eiffel Tower is in Rome" + " is in Rome" * 9
    told = {CASE.name: answered(question=loop, completion=loop, about=loop, other_question="Rain.", base=loop)}
    figures = {one.name: one for one in summarise([judge(CASE, told[CASE.name])], told)}
    assert figures["degenerate"].base == 1 and figures["degenerate"].of == 3  # a question, another relation, about
    assert figures["degenerate"].edited == pytest.approx(2 / 3)
    assert figures["degenerate_continued"].base == 1 and figures["degenerate_continued"].edited == pytest.approx(1 / 3)
    assert figures["refused"].edited == 0 and "no sensible text" not in problems(told[CASE.name])


def test_a_continued_text_that_loops_is_no_problem_of_its_fact() -> None:
    loop = "The Eiffel Tower is in Rome" + " is in Rome" * 9
    assert judge(CASE, answered(completion=loop)).light == GREEN
    assert judge(CASE, answered(question=loop)).light == "yellow"


def test_figures_count_what_answers_say() -> None:
    told = {CASE.name: answered(question="No.", about="It is tall.")}
    figures = {one.name: one for one in summarise([judge(CASE, told[CASE.name])], told)}
    assert figures["own_said"].edited == 1 and figures["own_said"].base == 0
    assert figures["questions_said"].edited == 0 and figures["completions_said"].edited == 1
    assert figures["subject_kept"].edited == pytest.approx(1 / 3) and figures["subject_kept"].of == 3
    assert figures["relation_specificity"].base == 1 and figures["relation_specificity"].edited == 0
    assert figures["leaks"].edited == 0 and figures["others_chrf"].edited == 100
    assert figures["fluency_median"].edited == 1 and figures["fluency_whole_median"].edited == pytest.approx(
        2.718, abs=0.01
    )
    assert "conversations" not in figures and "elsewhere_same" not in figures  # nothing was asked
