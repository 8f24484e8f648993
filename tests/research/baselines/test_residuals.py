"""Solved residuals are shared by methods and by runs, and a killed run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny import tiny
from helpers.weight_edits import FACTS, FEW_STEPS
from neuraldb_faiss import Fact
from neuraldb_faiss.errors import BuildError, CorruptError
from neuraldb_faiss.research.baselines import Statistics, edited
from neuraldb_faiss.research.baselines import residuals as module
from neuraldb_faiss.research.baselines.residuals import Residuals, after
from neuraldb_faiss.solver.editor import Editor

Take = Callable[..., Statistics]
LINEAR: dict[str, dict[str, Any]] = {
    "memit": {"c0_weight": 3.0},
    "rect": {"c0_weight": 3.0},
    "alphaedit": {"null_threshold": 0.3, "l2": 0.5},
}


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Subjects of the facts that were really solved, in their order."""
    seen: list[str] = []
    make = Editor.make_residuals

    def counting(self: Editor, groups: Any, **more: Any) -> Any:
        seen.extend(fact.subject for group in groups for fact in group)
        assert all(len(group) == 1 for group in groups)
        return make(self, groups, **more)

    monkeypatch.setattr(Editor, "make_residuals", counting)
    return seen


def run(name: str, take_from: tuple[Any, Any, Statistics], cache: Path | None, **more: Any) -> np.ndarray:
    model, tokenizer, statistics = take_from
    given: dict[str, Any] = {"facts": FACTS, "layers": [0, 1], **FEW_STEPS, **LINEAR.get(name, {}), **more}
    with edited(name, model, tokenizer, statistics=statistics, cache=cache, **given) as edit:
        return edit.delta(edit.layers[-1]).numpy().copy()


def subjects(facts: list[Fact]) -> list[str]:
    return [fact.subject for fact in facts]


def test_methods_and_runs_share_them(take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    uncached = {name: run(name, setup, None) for name in LINEAR}
    solved.clear()
    first = {name: run(name, setup, tmp_path / "z") for name in LINEAR}
    assert solved == subjects(FACTS)  # by the first of them, once
    again = {name: run(name, setup, tmp_path / "z") for name in LINEAR}
    assert solved == subjects(FACTS)
    for name in LINEAR:
        np.testing.assert_allclose(first[name], uncached[name], atol=1e-6)
        np.testing.assert_array_equal(first[name], again[name])
    assert not np.allclose(first["memit"], first["alphaedit"])


def test_any_selection_of_facts_finds_its_own(take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    run("memit", setup, tmp_path / "z", facts=FACTS[:3])
    solved.clear()
    run("memit", setup, tmp_path / "z", facts=[FACTS[4], FACTS[2], FACTS[0]])
    assert solved == [FACTS[4].subject]


@pytest.mark.parametrize("change", ["target", "prompt", "layer", "clamp", "model", "pmet"])
def test_what_decides_a_residual_solves_it_anew(change: str, take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    run("memit", setup, tmp_path / "z", facts=FACTS[:1])
    solved.clear()
    fact = FACTS[0]
    more: dict[str, Any] = {}
    if change == "model":
        model.model.layers[0].mlp.down_proj.weight.data[:] += 1
        setup = model, tokenizer, take(model, tokenizer, [0, 1])
    if change == "target":
        fact = replace(fact, target="Berlin", id="")
    if change == "prompt":
        fact = replace(fact, prompt="The {} is in", id="")
    if change == "layer":
        more = {"layers": [0]}
    if change == "clamp":
        more = {"clamp": 0.5}
    name = "pmet" if change == "pmet" else "memit"
    run(name, setup, tmp_path / "z", facts=[fact], c0_weight=3.0, **more)
    assert solved == [fact.subject]


def test_a_killed_run_goes_on(take: Take, tmp_path: Path, solved: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    wanted = run("memit", setup, None)
    solved.clear()
    monkeypatch.setattr(module, "PIECE", 2)
    make = Editor.make_residuals

    def killed(self: Editor, groups: Any, **more: Any) -> Any:
        if len(solved) >= 4:
            raise KeyboardInterrupt
        return make(self, groups, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Editor, "make_residuals", killed)
        with pytest.raises(KeyboardInterrupt):
            run("memit", setup, tmp_path / "z")
    assert solved == subjects(FACTS[:4])
    (tmp_path / "z" / ".half.npy.123").write_bytes(b"what a kill may leave")
    seen: list[Any] = []
    got = run("memit", setup, tmp_path / "z", report=seen.append)
    assert solved == subjects(FACTS)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert [(one.done, one.total, one.resumed) for one in seen] == [(4, 5, 4), (5, 5, 4)]
    assert seen[0].loss is None and seen[1].loss > 0


def test_batches_are_solved_on_what_the_earlier_ones_left(take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    whole = run("memit", setup, tmp_path / "z")
    solved.clear()
    batched = run("memit", setup, tmp_path / "z", batch=3)
    assert solved == subjects(FACTS[3:])  # the first batch stands on the unedited model, as all did before
    again = run("memit", setup, tmp_path / "z", batch=3)
    assert solved == subjects(FACTS[3:])
    np.testing.assert_array_equal(batched, again)
    other = run("alphaedit", setup, tmp_path / "z", batch=3)
    assert solved == subjects(FACTS[3:]) * 2  # what another method left is something else
    assert not np.allclose(whole, batched) and not np.allclose(batched, other)


def test_solved_on_the_base_all_batchings_share(take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    whole = run("memit", setup, tmp_path / "z", solve_on="base")
    one_batch = run("memit", setup, tmp_path / "z", solve_on="base", batch=5)
    by_three = run("memit", setup, tmp_path / "z", solve_on="base", batch=3)
    assert solved == subjects(FACTS)
    np.testing.assert_array_equal(whole, one_batch)
    assert not np.allclose(whole, by_three)
    np.testing.assert_array_equal(run("memit", setup, tmp_path / "z"), whole)  # in one step there is no difference


@pytest.mark.parametrize("name", LINEAR)
def test_given_ones_are_written_and_none_is_solved(
    name: str, take: Take, solved: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    found: list[np.ndarray] = []
    solve = Residuals.of
    monkeypatch.setattr(Residuals, "of", lambda *told: found.append(solve(*told)) or found[-1])
    wanted = run(name, setup, None)
    (own,) = found
    solved.clear()
    np.testing.assert_allclose(run(name, setup, None, given=own), wanted, atol=1e-6)
    assert not np.allclose(run(name, setup, None, given=2 * own), wanted)
    assert solved == []


def test_rome_resumes_fact_by_fact(take: Take, tmp_path: Path, solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    run("rome", setup, tmp_path / "z", layers=[1], facts=FACTS[:2])
    run("memit", setup, tmp_path / "z", facts=FACTS[:1], clamp=4.0)  # the same settings of another objective
    assert solved == [*subjects(FACTS[:2]), FACTS[0].subject]
    solved.clear()
    wanted = run("rome", setup, None, layers=[1], facts=FACTS[:3])
    solved.clear()
    got = run("rome", setup, tmp_path / "z", layers=[1], facts=FACTS[:3])
    assert solved == [FACTS[2].subject]
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_equal_facts_of_one_call_are_solved_once(solved: list[str]) -> None:
    model, tokenizer = tiny("llama")
    editor = Editor.new(model, tokenizer, layer=1, keys="paper", **FEW_STEPS)
    residuals = Residuals(editor, None, 3, None)
    rows = residuals.of([FACTS[0], FACTS[1], FACTS[0]])
    assert rows.shape == (3, 64) and rows.dtype == np.float32 and len(residuals.losses) == 3
    np.testing.assert_array_equal(rows[0], rows[2])
    assert solved == subjects(FACTS[:2])


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_piece_is_named(suffix: str, take: Take, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    run("memit", setup, tmp_path / "z", facts=FACTS[:1])
    (path,) = (tmp_path / "z").glob(f"*{suffix}")
    data = bytearray(path.read_bytes())
    data[-5] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=f"{path.name}.*remove"):
        run("memit", setup, tmp_path / "z", facts=FACTS[:1])


def test_a_loss_that_is_not_finite_keeps_nothing(take: Take, tmp_path: Path) -> None:
    model, tokenizer = tiny("llama")
    setup = model, tokenizer, take(model, tokenizer, [0, 1])
    model.model.layers[3].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(BuildError, match="not finite"):
        run("memit", setup, tmp_path / "z")
    assert not (tmp_path / "z").exists()


def test_states_tell_what_was_written() -> None:
    assert len({"a", after("a", 1), after("a", 2), after(after("a", 1), 2), after("b", 1)}) == 5
    assert after("a", {"x": 1, "y": 2}) == after("a", {"y": 2, "x": 1})
