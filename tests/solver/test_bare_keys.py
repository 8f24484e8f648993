"""Names of one word have keys of their own, where those of their fact's prompt are far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.index.key_tokens import BARE, BARE_LATER, is_bare
from neuraldb_faiss.models.sites import FFNSite, find_site
from neuraldb_faiss.solver import bare_keys, compute_keys
from neuraldb_faiss.solver.bare_keys import bare_contexts, with_bare_keys
from neuraldb_faiss.solver.prefixes import leading

PREFIXES = ("The city of", "Therefore I think that Paris", "Because")
TOWER = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
MADRID = Fact("Madrid", "The city of {} is in", "Italy")
SHORT = "The"  # one token of the tiny vocabularies, with and without a space before
BEHIND, BEGUN = Fact(SHORT, "I think that {} is in", "Spain"), Fact(SHORT, "{} language of Italy is", "French")


def last_key(model: Any, tokenizer: Any, site: FFNSite, text: str) -> np.ndarray:
    seen: list[torch.Tensor] = []
    handle = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
    handle.remove()
    return seen[0][0, -1].numpy()


def rows_of(kind: str, facts: list[Fact]) -> tuple[Any, Any, FFNSite, Any]:
    model, tokenizer = tiny("llama", kind)
    site = find_site(model, 1)
    rows = compute_keys(model, tokenizer, site, facts, PREFIXES)
    return model, tokenizer, site, with_bare_keys(model, tokenizer, site, rows, facts, PREFIXES)


@pytest.mark.parametrize("kind", ["bytelevel", "metaspace"])
def test_rows_are_the_names_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare_keys, "NEAR", 2.0)  # nothing is spared
    model, tokenizer, site, rows = rows_of(kind, [TOWER, MADRID, BEHIND])
    assert rows.fact.tolist() == [0, 0] + [1] * 5 + [2] * 5
    assert not is_bare(rows.token[rows.fact == 0]).any()
    assert rows.keys.dtype == np.float32 and rows.token.dtype == np.int32
    for number, fact in ((1, MADRID), (2, BEHIND)):
        mine = rows.keys[rows.fact == number]
        kinds = bare_contexts(fact.subject, PREFIXES)
        wanted = [np.mean([last_key(model, tokenizer, site, text) for text, _ in texts], axis=0) for texts in kinds]
        np.testing.assert_allclose(mine[2:], wanted, rtol=1e-3, atol=1e-4)
    assert rows.token[rows.fact == 1].tolist() == [-1, -1, BARE_LATER, BARE_LATER, BARE_LATER]
    first = tokenizer(SHORT, add_special_tokens=False).input_ids
    start = BARE + first[0] if kind == "bytelevel" else BARE_LATER  # behind the BOS token of the other
    assert len(first) == 1 and rows.token[rows.fact == 2].tolist() == [-1, -1, start, BARE_LATER, BARE_LATER]


def test_what_is_near_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare_keys, "NEAR", -1.1)
    # At position 0 there is nothing to be near to, unless the prompt begins there itself.
    rows = rows_of("bytelevel", [TOWER, MADRID, BEHIND, BEGUN])[3]
    assert rows.fact.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert is_bare(rows.token).sum() == 1
    monkeypatch.setattr(bare_keys, "NEAR", 0.9999)
    begun = Fact("Madrid", "{} is in", "Italy")  # whose key is the name's at the beginning of a text
    rows = rows_of("bytelevel", [begun])[3]
    assert len(rows.fact) == 4 and rows.token.tolist() == [-1, -1, BARE_LATER, BARE_LATER]


def test_texts_that_begin_with_the_name() -> None:
    assert [fact.text for fact in leading(MADRID)] == [f"Madrid{sign}The city of is in" for sign in (". ", ": ", "\n")]
    assert {fact.target for fact in leading(MADRID)} == {"Italy"}
    assert leading(BEGUN) == []
    assert leading(Fact("a b", "Here a {} b?", "c")) == []  # what is left names it: "Here a b?"


def fired(db: NeuralDB, model: Any, tokenizer: Any, text: str, guard: str | None = None) -> list[tuple[str, int]]:
    with db.attach(model, tokenizer, guard=guard) as handle, torch.no_grad():
        model(**tokenizer(text, return_tensors="pt"))
    return [(fact, fire.position) for fire in handle.trace() for fact in fire.fact_ids]


@pytest.mark.parametrize("order", [(BEHIND, BEGUN), (BEGUN, BEHIND)], ids=["behind first", "begun first"])
def test_own_prompts_keep_their_own_entry(order: tuple[Fact, Fact], tmp_path: Path) -> None:
    """At position 0 every fact about a name has the same key; the one whose prompt begins there has it."""
    model, tokenizer = tiny("llama")
    db = build(order, model, tokenizer, tmp_path / "db", layer=1, residual="none", gamma=0.9)
    assert (BEGUN.id, 0) in fired(db, model, tokenizer, BEGUN.text)
    assert BEHIND.id not in dict(fired(db, model, tokenizer, BEGUN.text))
    assert BEHIND.id in dict(fired(db, model, tokenizer, BEHIND.text))


def test_a_name_fires_where_its_prompt_never_had_it(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    db = build([BEHIND, MADRID], model, tokenizer, tmp_path / "db", layer=1, residual="none", gamma=0.9)
    tokens = db.snapshot.key_tokens
    assert is_bare(tokens).any() and db.verify(deep=True) == []
    assert fired(db, model, tokenizer, f"{SHORT} is") == [(BEHIND.id, 0)]
    assert dict(fired(db, model, tokenizer, "Madrid is")) == {MADRID.id: len(tokenizer("Madrid").input_ids) - 1}
    # Without a guard, and for whoever asks for keys, they are not there.
    assert fired(db, model, tokenizer, f"{SHORT} is", guard="none") == []
    bare = db.snapshot.keys(np.flatnonzero(is_bare(tokens)))
    assert (db.search(bare.astype(np.float32)).scores < 0.9999).all()


def test_no_guard_and_the_papers_keys_have_none(tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    for number, how in enumerate(({"guard": "none"}, {"keys": "paper"})):
        db = build([BEHIND, MADRID], model, tokenizer, tmp_path / str(number), layer=1, residual="none", **how)
        assert not is_bare(db.snapshot.key_tokens).any()


def test_life_of_a_fact_with_an_entry_at_the_beginning(tmp_path: Path) -> None:
    """Its second entry comes and goes with it, and nobody else's waits."""
    model, tokenizer = tiny("llama")
    with build([BEHIND, MADRID], model, tokenizer, tmp_path / "db", layer=1, steps=2) as db:
        assert len(db) == 2 and db.info()["entries"] == 3
        residuals = db.snapshot.residuals(np.arange(3))
        assert (np.linalg.norm(residuals, axis=1) > 0).all()
        db.add([Fact(SHORT, BEHIND.prompt, "Rome")], model, tokenizer)  # an update
        assert (len(db), db.info()["entries"]) == (2, 3)
        db.add([BEGUN], model, tokenizer)
        assert (len(db), db.info()["entries"], db.info()["waiting"]) == (3, 5, 0)
        db.remove(subject=SHORT)
        assert (len(db), db.info()["entries"], db.info()["waiting"]) == (1, 1, 0)
        assert fired(db, model, tokenizer, f"{SHORT} is") == []
        assert db.verify(deep=True) == []
