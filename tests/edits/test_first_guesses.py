"""Which entries first guesses are made from, in builds, additions and resumed builds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from helpers.fake_editor import D2, FakeEditor, vector
from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.edits import changes, pipeline
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Edited
from neuraldb_faiss.solver.first_guess import Solutions
from neuraldb_faiss.solver.outcome import FactOutcome
from neuraldb_faiss.store import Store


class Knowing(FakeEditor):
    """Residuals tell how many solutions their guesses were made from; facts of "Nowhere" do not take."""

    piece = 2
    optimizer = "sampled"

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Solutions] = []
        self.known: Solutions | None = None

    def settings(self) -> DatabaseConfig:
        return DatabaseConfig(**{**super().settings()._values(), "config": {"optimizer": self.optimizer}})

    def knowing(self, known: Solutions) -> Knowing:
        other = type(self)()
        other.given, other.known = self.given, known
        self.given.append(known)
        return other

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        made = []
        for group in groups:
            residual = self.residual_of(group)
            if self.known is not None:
                residual = residual + vector(self.known.digest, D2)
            facts = tuple(FactOutcome(0.1, 0.9, fact.target != "Nowhere") for fact in group)
            made.append(Edited(residual, 0.1, facts))
        return made


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "LEAST_SOLVED", 4)
    monkeypatch.setattr(pipeline, "MOST_SOLVED", 8)


def facts(*numbers: int, target: str = "Rome") -> list[Fact]:
    return [Fact(f"Place {n}", "{} is in the city of", f"{target}{n}") for n in numbers]


def residuals(store: Store) -> np.ndarray:
    snapshot = store.snapshot()
    return snapshot.residuals(np.unique(snapshot.key_entries))


def test_targets_come_with_what_stands_before_them(tmp_path: Path) -> None:
    editor = Knowing()
    told = Fact("A{b", "{} has {braces}", "C", metadata={"separator": ""})
    given = [*facts(1, 2), told, Fact("\u5df4\u9ece", "{}\u4f4d\u4e8e", "\u6cd5\u56fd"), *facts(3)]
    changes.build(given, editor, tmp_path / "db")
    assert editor.given[0].targets == tuple((fact.separator + fact.target,) for fact in given[:4])
    assert [fact.separator for fact in given[:4]] == [" ", " ", "", ""]


def test_a_build_guesses_anew_whenever_its_entries_have_doubled(tmp_path: Path) -> None:
    editor = Knowing()
    store = changes.build(facts(*range(20)), editor, tmp_path / "db")
    assert [len(known) for known in editor.given] == [4, 8]  # and no more than 8
    assert editor.given[0].targets == tuple((f" Rome{n}",) for n in range(4))
    found = residuals(store)
    assert np.abs(editor.given[0].residuals - found[:4]).max() < 1e-2  # float16 on disk
    plain = [FakeEditor().residual_of([fact]) for fact in facts(*range(20))]
    assert [np.allclose(one, two, atol=1e-2) for one, two in zip(plain, found, strict=True)] == [True] * 4 + [
        False
    ] * 16


@pytest.mark.parametrize("killed", [1, 2, 3, 4, 6])
def test_a_resumed_build_makes_the_same_guesses(tmp_path: Path, killed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = residuals(changes.build(facts(*range(16)), Knowing(), tmp_path / "whole"))
    solve, left = pipeline.solve_piece, iter(range(killed))

    def interrupted(*args: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return solve(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "solve_piece", interrupted)
        with pytest.raises(KeyboardInterrupt):
            changes.build(facts(*range(16)), Knowing(), tmp_path / "db")
    np.testing.assert_array_equal(residuals(changes.build(facts(*range(16)), Knowing(), tmp_path / "db")), whole)


def test_an_added_fact_is_guessed_from_the_live_entries_that_took(tmp_path: Path) -> None:
    store = changes.build(
        [*facts(*range(7)), Fact("Place 7", "{} is in the city of", "Nowhere")], Knowing(), tmp_path / "a"
    )
    changes.remove(store, [fact for fact in store.catalog.facts(1) if fact.target == "Rome2"])
    other = changes.build(facts(*range(50, 60)), Knowing(), tmp_path / "b")  # another database counts for nothing
    other.close()
    editor = Knowing()
    changes.add(store, editor, facts(20))
    (known,) = editor.given
    assert known.targets == tuple((f" Rome{n}",) for n in (0, 1, 3, 4, 5, 6))


def test_a_fact_that_gets_another_target_is_not_guessed_from_a_removed_one(tmp_path: Path) -> None:
    store = changes.build(facts(*range(6)), Knowing(), tmp_path / "a")
    (old,) = [fact for fact in store.catalog.facts(1) if fact.target == "Rome3"]
    editor = Knowing()
    changes.update(store, editor, old, Fact("Place 30", "{} is in the city of", "Oslo"))
    (known,) = editor.given
    assert (" Rome3",) not in known.targets and len(known) == 5


@pytest.mark.parametrize("count", [2, 3])
def test_small_databases_and_adam_are_solved_from_zeros(tmp_path: Path, count: int) -> None:
    editor = Knowing()
    store = changes.build(facts(*range(count)), editor, tmp_path / "a")
    changes.add(store, editor, facts(20))
    paper = Knowing()
    paper.optimizer = "adam"
    changes.build(facts(*range(12)), paper, tmp_path / "b")
    assert editor.given == [] and paper.given == []
