"""Merging does not depend on how it is bracketed, nor (but for the conflict rule) on the order of the sources."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.fake_editor import FakeEditor
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits import merge as merging
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, verify

EDITOR = FakeEditor()
facts = some.builds(
    Fact, some.sampled_from(["Paris", "Oslo", "Lima"]), some.sampled_from(["{} is in", "{} has", "In {} is"]),
    some.sampled_from(["Kyiv", "Bonn"]), source=some.sampled_from(["a", "b", "c"]),
)  # fmt: skip
contents = some.lists(facts, min_size=1, max_size=5, unique_by=lambda fact: fact.identity)
threes = some.tuples(contents, contents, contents)


def content(store: Store, contested: Collection[str] = ()) -> tuple[object, ...]:
    """What a database says and does: facts with sources and states, and the residuals that live keys lead to.

    Of facts that are `contested` the sources are left out: what a partial merge decided against is gone, and whence.
    """
    found = store.catalog.facts(store.generation)
    shown = sorted((f.identity, f.target, f.sources * (f.identity not in contested), f.state) for f in found)
    snapshot = store.snapshot()
    live = np.flatnonzero(snapshot.live)
    residuals = snapshot.residuals(snapshot.key_entries[live])
    pairs = sorted(set(zip(map(bytes, snapshot.keys(live)), map(bytes, residuals), strict=True)))
    assert verify(store, deep=True) == []
    return tuple(shown), tuple(pairs)


@settings(max_examples=15, deadline=None)
@given(three=threes, how=some.sampled_from(["first", "last"]), solved=some.booleans())
def test_associative(three: tuple[list[Fact], ...], how: str, solved: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, model = Path(name), object() if solved else None
        a, b, c = (changes.build(one, EDITOR, root / str(n)) for n, one in enumerate(three))

        def merge(out: str, *sources: Store) -> Store:
            return merging.merge(sources, out=root / out, on_conflict=how, model=model)[0]

        flat = merge("abc", a, b, c)
        left = merge("ab_c", merge("ab", a, b), c)
        right = merge("a_bc", a, merge("bc", b, c))
        if not solved:  # what waits may be silent or not, by the way it came; solved, all is equal
            for store in (flat, left, right):
                changes.solve(store, EDITOR)
        targets: dict[str, set[str]] = {}
        for fact in itertools.chain(*three):
            targets.setdefault(fact.identity, set()).add(fact.target)
        contested = {identity for identity, given in targets.items() if len(given) > 1}
        assert content(left, contested) == content(flat, contested) == content(right, contested)


@settings(max_examples=8, deadline=None)
@given(three=threes)
def test_independent_of_order_without_conflicts(three: tuple[list[Fact], ...]) -> None:
    agreed: dict[str, Fact] = {}
    for fact in itertools.chain(*three):
        agreed.setdefault(fact.identity, fact)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        stores = [
            changes.build([Fact(f.subject, f.prompt, agreed[f.identity].target, source=f.source) for f in one], EDITOR,
                          root / str(n))
            for n, one in enumerate(three)
        ]  # fmt: skip
        merged = [
            merging.merge(order, out=root / f"m{n}", model=object())[0]
            for n, order in enumerate(itertools.permutations(stores))
        ]
        first, *others = map(content, merged)
        assert all(other == first for other in others)
