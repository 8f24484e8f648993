"""What is shown is what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss import Fact, NeuralDB
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.inference.ask import ask
from neuraldb_faiss.inspector.views import Looker, pieces
from neuraldb_faiss.models import find_site

from .conftest import PROMPT


def test_a_look_shows_both_answers_and_what_fired(looker: Looker, db: Path, loaded: tuple[Any, Any]) -> None:
    look = looker.look(PROMPT, max_new_tokens=6)
    with NeuralDB.open(db) as opened, opened.attach(*loaded) as handle:
        answer = ask(opened, handle, *loaded, PROMPT, compare=True, max_new_tokens=6)
        fired = [(one.position, one.entry_id) for one in handle.trace()]
    assert look.base == answer.base != answer.edited
    assert "".join(one.token for one in look.prompt) == PROMPT
    assert "".join(one.token for one in look.edited) == answer.edited
    assert [(one.position, one.entry) for one in look.tokens if one.fired] == fired != []
    assert [fact.id for one in look.fired for fact in one.facts] == ["tower"]
    assert look.fired[0].score == max(one.score for one in look.prompt if one.fired) > look.gamma
    assert (look.generation, look.guard) == (1, "subject")


def test_a_looker_leaves_the_model_as_it_was_and_sees_new_generations(
    looker: Looker, db: Path, loaded: tuple[Any, Any]
) -> None:
    model, tokenizer = loaded
    text = "Marie Curie was born in"
    before = looker.look(text)
    assert before.fired == () and before.base == "".join(one.token for one in before.edited)
    with NeuralDB.open(db, "rw") as writer:
        writer.add([Fact("Marie Curie", "{} was born in", "Tokyo", "curie")], model, tokenizer)
    assert looker.look(text, delivery="residual").fired == ()
    looker.refresh()
    after = looker.look(text, delivery="residual")
    assert [one.facts[0].id for one in after.fired] == ["curie"] and after.generation == 2
    assert after.base == before.base
    assert not find_site(model, looker._db.layer).module._forward_hooks


def test_cosines_of_own_prompts_paraphrases_and_other_texts(looker: Looker) -> None:
    own, paraphrases, others, ordinary = looker.cosines()
    assert (own.name, len(own.scores), own.fired) == ("own prompts", 3, 3)
    assert min(own.scores) > 0.99  # a key is stored in half precision
    assert len(paraphrases.scores) == 1  # the other text does not name the subject
    assert others.name == "other subjects" and others.fired == 0
    assert len(ordinary.scores) > 50


def test_limit_is_a_number_of_facts(looker: Looker) -> None:
    assert len(looker.cosines(limit=1)[0].scores) == 1


def test_pieces_join_to_the_text_whatever_a_character_takes(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    text = "Zürich 東京 is\nhere"
    ids = tokenizer(text)["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == text
    end = tokenizer.eos_token_id
    assert pieces(tokenizer, [end]) == ["<|endoftext|>"]
    cut = tokenizer("Rome 東")["input_ids"][:-1]  # where an answer may be as long as it may
    assert "".join(pieces(tokenizer, cut)) == tokenizer.decode(cut) and tokenizer.decode(cut).endswith("\ufffd")
    assert "".join(pieces(tokenizer, [*cut, end])) == tokenizer.decode(cut) + "<|endoftext|>"


def test_an_empty_prompt_is_refused(looker: Looker) -> None:
    with pytest.raises(FactError, match="the prompt is empty"):
        looker.look("  ")
