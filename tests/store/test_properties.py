"""Random histories of several databases against a plain dict of what should be there."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from helpers.fake_editor import FakeEditor, left, vector
from neuraldb_faiss.edits import changes, merge
from neuraldb_faiss.errors import ConflictError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, compact, joining, rollback, verify

SUBJECTS = ["Paris", "Oslo", "Lima", "Rome"]
RELATIONS = ["{} is in", "{} was founded by", "The mayor of {} is"]
TARGETS = ["Kyiv", "Ibsen", "Bonn"]

facts = some.builds(
    Fact, some.sampled_from(SUBJECTS), some.sampled_from(RELATIONS), some.sampled_from(TARGETS),
    source=some.sampled_from(["a", "b"]),
)  # fmt: skip
batches = some.lists(facts, min_size=1, max_size=5, unique_by=lambda fact: fact.identity)
EDITOR = FakeEditor()
Facts = dict[str, Fact]


class Histories(RuleBasedStateMachine):
    databases = Bundle("databases")

    def __init__(self) -> None:
        super().__init__()
        self.fan, joining.FAN = joining.FAN, 2  # so that nearly every change joins segments
        self.root = Path(tempfile.mkdtemp())
        self.stores: dict[str, Store] = {}
        self.expected: dict[str, dict[int, Facts]] = {}  # name -> generation -> what lives
        self.first: dict[str, int] = {}  # the first generation that compaction left
        self.touched: set[str] = set()  # since the invariants were looked at

    def teardown(self) -> None:
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.root)
        joining.FAN = self.fan

    def put(self, name: str, facts: Facts) -> None:
        self.touched.add(name)
        self.expected[name][self.stores[name].generation] = facts

    def now(self, name: str) -> Facts:
        return dict(self.expected[name][self.stores[name].generation])

    def build_one(self, batch: list[Fact]) -> str:
        name = f"db{len(self.expected)}"
        self.stores[name] = changes.build(batch, EDITOR, self.root / name)
        self.expected[name] = {1: {fact.identity: fact for fact in batch}}
        self.first[name] = 1
        self.touched.add(name)
        return name

    @initialize(target=databases, one=batches, two=batches)
    def start(self, one: list[Fact], two: list[Fact]):  # type: ignore[no-untyped-def]
        return multiple(self.build_one(one), self.build_one(two))

    @rule(target=databases, batch=batches)
    def build(self, batch: list[Fact]) -> str:
        return self.build_one(batch)

    @rule(name=databases, batch=batches)
    def add(self, name: str, batch: list[Fact]) -> None:
        old = self.now(name)
        done = changes.add(self.stores[name], EDITOR, batch)
        fresh = {f.identity: f for f in batch if f.identity not in old or old[f.identity].target != f.target}
        assert (done is None) == (not fresh)
        if done is not None:
            assert done.added == len(fresh.keys() - old.keys())
            assert done.updated == len(fresh.keys() & old.keys())
            self.put(name, {**old, **fresh})

    @rule(
        name=databases, subject=some.sampled_from(SUBJECTS), relation=some.sampled_from(RELATIONS),
        solved=some.booleans(),
    )  # fmt: skip
    def remove(self, name: str, subject: str, relation: str, solved: bool) -> None:
        old = self.now(name)
        identity = Fact(subject, relation, "x").identity
        if identity not in old:
            return
        store = self.stores[name]
        doomed = list(store.catalog.facts(store.generation, identities=[identity]))
        done = changes.remove(store, doomed, EDITOR if solved else None)
        assert (done.added, done.updated, done.removed) == (0, 0, 1)
        del old[identity]
        self.put(name, old)

    @rule(name=databases)
    def solve(self, name: str) -> None:
        old = self.now(name)
        if changes.solve(self.stores[name], EDITOR) is not None:
            self.put(name, old)
        assert not list(self.stores[name].catalog.facts(self.stores[name].generation, waiting=True))

    @rule(name=databases, back=some.integers(0, 5))
    def roll_back(self, name: str, back: int) -> None:
        store = self.stores[name]
        generation = max(self.first[name], store.generation - 1 - back)
        if generation < store.generation:
            rollback(store, generation)
            self.put(name, self.expected[name][generation])

    @rule(name=databases)
    def compact(self, name: str) -> None:
        old = self.now(name)
        compact(self.stores[name])
        self.put(name, old)
        self.first[name] = self.stores[name].generation

    @rule(
        target=databases, names=some.lists(databases, min_size=2, max_size=3, unique=True),
        how=some.sampled_from(["error", "first", "last"]), solved=some.booleans(), link=some.booleans(),
    )  # fmt: skip
    def merge(self, names: list[str], how: str, solved: bool, link: bool):  # type: ignore[no-untyped-def]
        contents = [self.now(name) for name in names]
        expected: Facts = {}
        conflict = False
        for content in contents:
            for identity, fact in content.items():
                if identity in expected and expected[identity].target != fact.target:
                    conflict = True
                    if how == "first":
                        continue
                expected[identity] = fact if how == "last" or identity not in expected else expected[identity]
        name = f"db{len(self.expected)}"
        sources = [self.stores[n] for n in names]
        try:
            store, _ = self.merged(sources, self.root / name, how, solved, link)
        except ConflictError:
            assert conflict and how == "error"
            assert not (self.root / name).exists()
            return multiple()
        assert not (conflict and how == "error")
        self.stores[name], self.first[name] = store, 1
        self.expected[name] = {1: expected}
        self.touched.add(name)
        return name

    def merged(self, sources: list[Store], out: Path, how: str, solved: bool, link: bool):  # type: ignore[no-untyped-def]
        if not solved:
            return merge.merge(sources, out=out, on_conflict=how, link=link)
        return merge.merge(sources, out=out, on_conflict=how, link=link, model=object())

    @rule(name=consumes(databases))
    def reopen(self, name: str) -> None:
        self.stores[name].close()
        self.stores[name] = Store(self.root / name, "rw")

    @invariant()
    def what_changed_is_as_expected(self) -> None:
        for name in self.touched:
            self.check_facts(name, self.stores[name])
            self.check_firing(name, self.stores[name])
        self.touched.clear()

    def check_facts(self, name: str, store: Store) -> None:
        for generation, facts in self.expected[name].items():
            if generation < self.first[name]:
                continue
            shown = {f.identity: f.target for f in store.catalog.facts(generation)}
            assert shown == {identity: fact.target for identity, fact in facts.items()}
        assert store.catalog.generations()[-1].facts == len(self.now(name))
        assert verify(store, deep=True) == []

    def check_firing(self, name: str, store: Store) -> None:
        """Every live, not waiting fact fires the residual solved for all live facts of its key; no other fires."""
        snapshot, now = store.snapshot(), self.now(name)
        keys = snapshot.keys(np.arange(snapshot.n_keys)).astype(np.float64)
        stored = {f.identity: f for f in store.catalog.facts(store.generation)}
        groups: dict[str, list[Fact]] = {}
        for fact in now.values():
            groups.setdefault(left(fact), []).append(fact)
        for text in {left(Fact(s, r, "x")) for s in SUBJECTS for r in RELATIONS}:
            query = vector("raw " + text, snapshot.d1)
            cosines = keys @ query / np.linalg.norm(query)
            cosines[~snapshot.live] = -2
            fires = cosines.max(initial=-2) > 0.99
            group = groups.get(text, [])
            states = {stored[fact.identity].state for fact in group}
            if not group or states == {"suspended"}:
                assert not fires
            elif states == {"live"}:
                assert fires
                found = snapshot.residuals(snapshot.key_entries[[cosines.argmax()]])[0]
                np.testing.assert_allclose(found, EDITOR.residual_of(group), rtol=2e-3, atol=1e-3)
            else:  # several entries share the key, and at least one fact waits
                assert states & {"contested", "suspended"}


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
