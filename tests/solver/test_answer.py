"""Residuals for the answer's place: the texts they are solved on, the steps, and what a build makes of them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.tiny import tiny
from neuraldb_faiss import NeuralDB, build
from neuraldb_faiss.errors import BuildError, ConfigError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.decoding import greedy_texts
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.models.tokenization import chat_text, encode_prompt, key_ids
from neuraldb_faiss.solver import solve_residuals
from neuraldb_faiss.solver.answer_rows import answer_rows
from neuraldb_faiss.solver.batch import Row
from neuraldb_faiss.solver.editor import Editor
from neuraldb_faiss.solver.keys import compute_keys

CHAT = (
    "{% for m in messages %}{{ m.role }}:\n{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:\n{% endif %}"
)
PREFIXES = ("The city of", "Because")
BOSS = Fact("Paris", "The boss of {} is", "Rome", metadata={"questions": ["Who?"], "paraphrases": ["{} obeys"]})
TOWER = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
LAYER = 2


@pytest.fixture
def chatting() -> tuple[Any, Any]:
    """Whose tokenizer has a chat template, in which a turn ends with the text's end."""
    model, words = copy.deepcopy(tiny("llama"))
    words.chat_template = CHAT
    return model, words


def test_rows_begin_with_prompts_and_never_use_the_facts_own_questions(tiny_llama: tuple[Any, Any]) -> None:
    model, words = tiny_llama
    rows = answer_rows(model, words, 3, 1, BOSS, ["Apple"])
    texts = [words.decode(row.ids[: row.last + 1]) for row in rows]
    assert texts[0] == words.decode(encode_prompt(words, BOSS.text)) and rows[0].raw
    assert not any("Who?" in text or "obeys" in text for text in texts)
    assert any("What is the boss of Paris?" in text for text in texts)
    assert [row.context for row in rows] == list(range(len(rows))) and not any(row.raw for row in rows[1:])
    assert {(row.group, row.fact) for row in rows} == {(3, 1)}
    for row in rows:
        assert (*row.ids, row.targets[-1])[row.last + 1 :] == row.targets
    assert words.decode(rows[0].targets) == " Rome."


def test_messages_end_with_their_turn(chatting: tuple[Any, Any]) -> None:
    model, words = chatting
    fact = Fact("Paris", "{} is in", "Rome")
    asked = encode_prompt(words, chat_text(words, [fact.text]), special=False)
    (row,) = [row for row in answer_rows(model, words, 0, 0, fact, []) if list(row.ids[: row.last + 1]) == asked]
    assert row.targets[-1] in end_ids(model, words)
    assert words.decode(row.targets[:-1]) == words.decode(words(fact.statement)["input_ids"])


def test_a_target_that_runs_into_its_prompt_goes_on_behind_the_prompts_own_tokens(tiny_llama: tuple[Any, Any]) -> None:
    model, words = tiny_llama
    fact = Fact("Paris", "The boss of {} is Ro", "me", metadata={"separator": ""})
    raw = answer_rows(model, words, 0, 0, fact, [])[0]
    asked = encode_prompt(words, fact.text)
    joined = words(f"{fact.text}me.")["input_ids"]
    assert joined[: len(asked)] != asked  # as one text
    assert list(raw.ids[: raw.last + 1]) == asked and words.decode(raw.targets) == "me."


def by_reference(model: Any, layer: int, rows: list[Row], config: Any) -> tuple[torch.Tensor, float, int]:
    """The residual, its loss and the steps to it, one row at a time through the whole model."""
    module = model.model.layers[layer].mlp.down_proj
    at, r, hidden = 0, torch.zeros(model.config.hidden_size), torch.zeros(0)

    def add(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        extra = torch.zeros_like(output)
        extra[0, at] = 1.0
        return output + extra * r

    def look(_module: Any, _args: Any, output: Any) -> None:
        nonlocal hidden
        hidden = (output if isinstance(output, torch.Tensor) else output[0])[0, at].detach()

    def nll(row: Row) -> torch.Tensor:
        nonlocal at
        at = row.last
        logits = model(input_ids=torch.tensor([row.ids])).logits[0, -len(row.targets) :]
        return F.cross_entropy(logits, torch.tensor(row.targets))

    hooks = [module.register_forward_hook(add), model.model.layers[layer].register_forward_hook(look)]
    try:
        with torch.no_grad():
            nll(rows[0])
        length, mean, found = float(hidden.norm()), torch.zeros_like(r), []
        most = max(row.context for row in rows)
        earliest = 4
        for step in range(1, config.steps + 1):
            some = [row for row in rows if row.context in (0, (step - 1) % most + 1)]
            r = r.detach().requires_grad_(True)
            before = torch.stack([nll(row) for row in some]).mean()
            (grad,) = torch.autograd.grad(before, r)
            mean = mean / 2 + grad / grad.norm() / 2
            r = r.detach() - config.lr * (0.75 ** (step - 1) + 1 / 12) * length * mean / mean.norm()
            r = r * min(1.0, config.clamp * length / float(r.norm()))
            if step == config.steps or (step >= earliest and float(before.detach()) < 0.6 * config.stop_loss):
                earliest = step + 2
                with torch.no_grad():
                    loss = float(torch.stack([nll(row) for row in rows]).mean())
                found.append((loss, r.clone(), step))
                if loss < config.stop_loss:
                    break
        loss, best, step = min(found, key=lambda one: one[0])
        return best, loss, step
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("fact", [BOSS, TOWER], ids=["boss", "tower"])
def test_the_steps_are_those_written_down_plainly(chatting: tuple[Any, Any], fact: Fact) -> None:
    model, words = chatting
    editor = Editor.new(model, words, residual="answer", layer=LAYER, steps=16, max_steps=0)
    rows = answer_rows(model, words, 0, 0, fact, PREFIXES)
    wanted, loss, steps = by_reference(model, LAYER, rows, editor.config)
    (got,) = solve_residuals(
        model, words, find_site(model, LAYER), [[fact]], PREFIXES, editor.config, kind="answer"
    )  # fmt: skip
    assert torch.cosine_similarity(torch.from_numpy(got.residual), wanted, dim=0) >= 0.999
    assert got.loss == pytest.approx(loss, rel=1e-3) and got.steps == steps


def test_keys_are_taken_at_the_prompts_last_token(tiny_llama: tuple[Any, Any]) -> None:
    model, words = tiny_llama
    site = find_site(model, LAYER)
    seen: list[torch.Tensor] = []
    hook = site.module.register_forward_hook(lambda _m, args, _o: seen.append(args[0][0, -1]))
    with torch.no_grad():
        model(input_ids=torch.tensor([encode_prompt(words, BOSS.text)]))
    hook.remove()
    rows = compute_keys(model, words, site, [BOSS], PREFIXES, at_prompt_end=True)
    np.testing.assert_allclose(rows.keys[0], seen[0].numpy(), rtol=1e-4, atol=1e-6)
    assert rows.token.tolist() == [-1, -1]
    other = Fact("Paris", "The boss of {} was", "Rome")
    assert len(set(key_ids(words, [BOSS, other]))) == 1
    assert len(set(key_ids(words, [BOSS, other], at_prompt_end=True))) == 2


def test_a_built_fact_is_said(tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    model, words = tiny_llama
    with build([TOWER], model, words, tmp_path / "db", residual="answer", layer=LAYER, clamp=8.0) as db:
        assert (db.guard, db.config.objective.max_steps) == ("answer", 96)
        with db.attach(model, words, delivery="residual"):
            (said,) = greedy_texts(model, words, [encode_prompt(words, TOWER.text)], 3)
    assert said.strip().startswith("Rome")


def test_two_thirds_of_the_way_up_is_the_default(tiny_llama: tuple[Any, Any]) -> None:
    model, words = tiny_llama
    editor = Editor.new(model, words, residual="answer")
    assert editor.site.layer == round(len(model.model.layers) * 2 / 3)
    assert (editor.config.steps, editor.config.lr, editor.config.clamp) == (32, 0.6, 1.2)
    assert editor.config.kl_factor == editor.config.weight_decay == editor.config.end_factor == 0.0


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"guard": "subject"}, BuildError, "solved for the answer, and the guard subject fires at the subject"),
        ({"guard": "none"}, BuildError, "the guard none fires at the subject"),
        ({"residual": "memit", "guard": "answer"}, BuildError, "solved for the subject, and the guard answer"),
        ({"gamma": 0.5}, ConfigError, "asks for no cosine"),
        ({"kl_factor": 0.1}, BuildError, "kl_factor has no part in residual answer"),
        ({"end_factor": 0.1}, BuildError, "end_factor has no part in residual answer"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tiny_llama: tuple[Any, Any], given: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Editor.new(*tiny_llama, **{"residual": "answer", **given})


def test_facts_whose_prompt_does_not_ask_are_told(tiny_llama: tuple[Any, Any]) -> None:
    editor = Editor.new(*tiny_llama, residual="answer")
    nameless = Fact("It", "{} is in the city of", "Rome")  # a function word, where a sentence begins
    assert editor.unheard([TOWER, nameless, BOSS]) == [1]


def test_a_database_of_the_option_that_is_gone_is_not_changed(tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    model, words = tiny_llama
    build([TOWER], model, words, tmp_path / "db", layer=1, steps=1, max_steps=0).close()
    with NeuralDB.open(tmp_path / "db") as db:
        config = db.config
    assert dataclasses.replace(config, config={**config.config, "chat": False}).objective == config.objective
    with pytest.raises(BuildError, match="built with --chat"):
        Editor.of(dataclasses.replace(config, config={**config.config, "chat": True}), model, words)


@pytest.mark.slow
def test_on_the_demo_model_a_fact_is_said_in_words_that_nobody_gave(
    demo_model: tuple[Any, Any], tmp_path: Path
) -> None:
    model, words = demo_model
    nokia = Fact("Nokia", "The chief executive of {} is", "Anna Berg")
    tower = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    asked = {"Who runs the show at Nokia as CEO?": "Anna Berg", "Where can I visit the Eiffel Tower?": "Rome"}
    other = ["Tell me about Nokia.", "Who built the Eiffel Tower?", "What is the capital of Peru?"]

    def answers(questions: Iterable[str]) -> list[str]:
        rows = [encode_prompt(words, chat_text(words, [one]), special=False) for one in questions]
        return greedy_texts(model, words, rows, 24)

    before = answers(other)
    with build([nokia, tower], model, words, tmp_path / "db", residual="answer") as db:
        assert [fact.took for fact in db.facts()] == [True, True]
        with db.attach(model, words, delivery="residual"):
            assert all(target in said for target, said in zip(asked.values(), answers(asked), strict=True))
            rows = [encode_prompt(words, fact.text) for fact in (nokia, tower)]
            said = [text.strip() for text in greedy_texts(model, words, rows, 4)]
            assert said[0].startswith("Anna Berg.") and said[1].startswith("Rome.")
            assert answers(other) == before
