"""Subjects that are one token at position 0 of their prompt: two entries, one for that place and one for all others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_editor import FakeEditor
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Edited, Editor
from neuraldb_faiss.solver.keys import KeyRows
from neuraldb_faiss.store import Store, verify

ROME, CAPITAL = Fact("Rome", "{} is in", "Spain"), Fact("Rome", "{} is the capital of", "Peru")
OTHER = Fact("Marie Curie", "The scientist {} was born in", "Rome")
TOKEN, FIRST, LATER = 7, 100.0, 1.0


class HeadEditor(FakeEditor):
    """Prompts that begin with a one-word subject have a raw key at position 0; residuals say which place they serve."""

    def make_keys(self, facts: Sequence[Fact]) -> KeyRows:
        rows = super().make_keys(facts)
        for number, fact in enumerate(facts):
            if fact.prompt.startswith("{}") and " " not in fact.subject:
                rows.token[2 * number] = TOKEN
        return rows

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        edited = super().make_residuals(groups)
        for one in edited:
            one.residual[0] = LATER if prefixed else FIRST
        return edited


EDITOR = HeadEditor()


@pytest.fixture(autouse=True)
def heads_in_merges(monkeypatch: pytest.MonkeyPatch, no_model: None) -> None:
    monkeypatch.setattr(Editor, "of", lambda settings, model, tokenizer: EDITOR)


def rows(store: Store) -> list[tuple[str, int, str]]:
    facts = store.catalog.facts(store.generation, every_row=True)
    return [(fact.subject, fact.entry, fact.state) for fact in facts]


def states_of_rome(store: Store) -> set[str]:
    return {state for subject, _, state in rows(store) if subject == "Rome"}


def assert_served(store: Store, *facts: Fact) -> None:
    """Each fact is shown once, keys at position 0 lead to the entries made for it, and nothing waits."""
    shown = [fact.identity for fact in store.catalog.facts(store.generation)]
    assert sorted(shown) == sorted(fact.identity for fact in facts)
    assert {state for *_, state in rows(store)} == {"live"}
    snapshot = store.snapshot()
    residuals = snapshot.residuals(snapshot.key_entries[snapshot.live])[:, 0]
    at_head = snapshot.key_tokens[snapshot.live] == TOKEN
    assert np.array_equal(residuals == FIRST, at_head) and set(residuals) <= {FIRST, LATER}
    # Facts of one key share its entries, so there is one such key for Rome however many facts it has.
    assert at_head.sum() == any(fact.subject == "Rome" for fact in facts)
    assert len(rows(store)) == len(facts) + sum(fact.subject == "Rome" for fact in facts)
    assert verify(store, deep=True) == []


def doomed(store: Store, prompt: str) -> list:  # type: ignore[type-arg]
    return [fact for fact in store.catalog.facts(store.generation) if fact.prompt == prompt]


def test_build_add_update_remove_solve(tmp_path: Path) -> None:
    store = changes.build([ROME, OTHER], EDITOR, tmp_path / "db")
    assert_served(store, ROME, OTHER)
    done = changes.add(store, EDITOR, [CAPITAL])
    assert done is not None and (done.added, done.updated, done.removed) == (1, 0, 0)
    assert_served(store, ROME, CAPITAL, OTHER)
    done = changes.add(store, EDITOR, [Fact("Rome", "{} is in", "Chile")])
    assert done is not None and (done.added, done.updated, done.removed) == (0, 1, 0)
    assert_served(store, ROME, CAPITAL, OTHER)
    assert changes.remove(store, doomed(store, "{} is in")).removed == 1
    assert states_of_rome(store) == {"suspended"}
    changes.solve(store, EDITOR)
    assert_served(store, CAPITAL, OTHER)


def test_remove_with_a_model_solves_both_entries(tmp_path: Path) -> None:
    store = changes.build([ROME, CAPITAL, OTHER], EDITOR, tmp_path / "db")
    changes.remove(store, doomed(store, "{} is in"), EDITOR)
    assert_served(store, CAPITAL, OTHER)
    changes.remove(store, doomed(store, "{} is the capital of"), EDITOR)
    assert_served(store, OTHER)


@pytest.mark.parametrize("same", [False, True], ids=["two facts", "one fact twice"])
@pytest.mark.parametrize("solved", [False, True], ids=["left", "solved"])
@pytest.mark.parametrize("into", [False, True], ids=["out", "into"])
def test_merge(tmp_path: Path, same: bool, solved: bool, into: bool) -> None:
    one = changes.build([ROME, OTHER], EDITOR, tmp_path / "a")
    two = changes.build([ROME if same else CAPITAL], EDITOR, tmp_path / "b")
    model = object() if solved else None
    if into:
        store, _ = merge.merge([two], into=one, model=model)
    else:
        store, _ = merge.merge([one, two], out=tmp_path / "c", model=model)
    facts = [ROME, OTHER] if same else [ROME, CAPITAL, OTHER]
    if not solved and not same:
        assert states_of_rome(store) == {"contested"}
        changes.solve(store, EDITOR)
    assert_served(store, *facts)
