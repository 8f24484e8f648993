"""Kinds that another package adds by entry points are used by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from helpers.commands import FACTS, Run, write
from helpers.plugins import installed
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.guard.registry import REGISTRY as GUARDS
from neuraldb_faiss.index.registry import REGISTRY as INDEX_KINDS
from neuraldb_faiss.solver.objectives.registry import REGISTRY as OBJECTIVES

TOY_INDEX = """
    import numpy as np
    from neuraldb_faiss.index.base import Searcher
    from neuraldb_faiss.index.registry import IndexKind

    row = IndexKind("toy", "every key, by NumPy", "toy_index:ToySearcher", {"block": "keys read at once"})
    made = []


    class ToySearcher(Searcher):
        kind = "toy"
        tolerance = 1e-4

        def __init__(self, source, place, block=4):
            self._keys = np.empty((0, source.d1), np.float32)
            self.block = block
            made.append(place.directory)

        @property
        def ntotal(self):
            return len(self._keys)

        def add(self, keys):
            self._keys = np.concatenate([self._keys, keys])

        def search(self, queries, k, allowed=None, above=-1.0):
            scores = queries @ self._keys.T
            if allowed is not None:
                scores[:, ~allowed] = -np.inf
            at = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            near = np.take_along_axis(scores, at, axis=1)
            return near, np.where(np.isfinite(near), at, -1)
"""


TOY_OBJECTIVE = """
    from neuraldb_faiss.solver.objectives.memit import Memit
    from neuraldb_faiss.solver.objectives.registry import ObjectiveKind

    row = ObjectiveKind("toy", "MEMIT's for two steps", "toy_objective:Toy")


    class Toy(Memit):
        def defaults(self, model, ffn_module=None):
            from dataclasses import replace

            return replace(super().defaults(model, ffn_module), steps=2)

        def ends(self, now, config):
            return now.stop < 1e9
"""

TOY_GUARD = """
    from neuraldb_faiss.guard.none import PlainGate
    from neuraldb_faiss.guard.registry import GuardKind

    row = GuardKind("toy", "every second fact fires", 0.5, "toy_guard:make", reads_text=False)


    class ToyGate(PlainGate):
        guard = "toy"


    def make(source, gamma, tokenizer, plain):
        assert gamma == 0.5 and tokenizer is None
        return ToyGate(plain())
"""


@pytest.fixture
def toy_index(tmp_path: Path) -> Iterator[None]:
    with installed(tmp_path, "toy_index", TOY_INDEX, INDEX_KINDS, "row"):
        yield


@pytest.mark.usefixtures("toy_index")
def test_another_packages_index_kind_builds_reindexes_and_searches(run: Run, model: Path, tmp_path: Path) -> None:
    facts, path = write(tmp_path / "facts.jsonl", FACTS), tmp_path / "db"
    done = run(
        "build", facts, "--out", path, "--model", model, "--residual", "none", "--index", "toy", "--guard", "none"
    )
    assert done.exit_code == 0, done.output
    assert json.loads(run("info", path, "--json").stdout)["index"] == {"kind": "toy"}
    with NeuralDB.open(path) as db:
        keys = db.snapshot.keys(np.arange(db.snapshot.n_keys))
        assert db.matcher().kind == "toy"
        found = db.search(keys)
        wanted = db.matcher("flat").match(keys)
        assert found.entry_ids.tolist() == wanted.entry_ids.tolist() and bool(found.fired.all())
    assert run("reindex", path, "--index", "flat").exit_code == 0
    done = run("reindex", path, "--index", "toy")
    assert done.exit_code == 0, done.output
    done = run("reindex", path, "--index", "toy", "--index-option", "block", 2)
    assert done.exit_code == 0, done.output
    assert json.loads(run("info", path, "--json").stdout)["index"] == {"kind": "toy", "block": 2}
    with NeuralDB.open(path) as db:
        assert db.matcher()._searcher.block == 2
    asked = run("generate", path, FACTS[0]["prompt"].replace("{}", FACTS[0]["subject"]), "--max-new-tokens", 1)
    assert asked.exit_code == 0, asked.output
    refused = run("reindex", path, "--index", "toy", "--nlist", 2)
    assert refused.exit_code == 2 and "nlist and nprobe belong to the index kind 'ivf'" in refused.stderr
    assert "toy" in run("reindex", "--help").output


def test_without_the_package_the_error_names_the_kinds(run: Run, db: Path, tmp_path: Path) -> None:
    with installed(tmp_path, "toy_index", TOY_INDEX, INDEX_KINDS, "row"):
        assert run("reindex", db, "--index", "toy").exit_code == 0
    with NeuralDB.open(db) as opened, pytest.raises(SearchError, match="index kind 'toy': choose one of flat, ivf"):
        opened.matcher()
    assert run("reindex", db, "--index", "flat").exit_code == 0


def test_another_packages_objective_builds_adds_and_is_named_in_help(run: Run, model: Path, tmp_path: Path) -> None:
    facts, path = write(tmp_path / "facts.jsonl", FACTS[:2]), tmp_path / "db"
    with installed(tmp_path, "toy_objective", TOY_OBJECTIVE, OBJECTIVES, "row"):
        done = run("build", facts, "--out", path, "--model", model, "--residual", "toy", "--max-steps", 0)
        assert done.exit_code == 0, done.output
        added = run("add", path, write(tmp_path / "more.jsonl", FACTS[2:3]), "--model", model)
        assert added.exit_code == 0, added.output
        with NeuralDB.open(path) as db:
            assert {fact.residual for fact in db.facts()} == {"toy"}
            assert db.config.config["steps"] == 2 and db.config.config["optimizer"] == "adam"  # as it was written for
            assert np.abs(db.snapshot.residuals(np.array([0]))).max() == 0  # ended at the first step: nothing was added
        assert "memit|pmet|answer|none|toy" in run("build", "--help").output
    refused = run("add", path, write(tmp_path / "last.jsonl", FACTS[3:]), "--model", model)
    assert refused.exit_code == 1 and "the stored setting residual is 'toy', which is not installed" in refused.stderr


def test_another_packages_guard_is_built_with_and_decides(run: Run, model: Path, tmp_path: Path) -> None:
    facts, path = write(tmp_path / "facts.jsonl", FACTS), tmp_path / "db"
    with installed(tmp_path, "toy_guard", TOY_GUARD, GUARDS, "row"):
        done = run("build", facts, "--out", path, "--model", model, "--residual", "none", "--guard", "toy")
        assert done.exit_code == 0, done.output
        assert json.loads(run("info", path, "--json").stdout)["gamma"] == 0.5
        done = run("generate", path, FACTS[0]["prompt"].replace("{}", FACTS[0]["subject"]), "--max-new-tokens", 1)
        assert done.exit_code == 0, done.output
        assert "toy" in run("build", "--help").output
    assert run("build", facts, "--out", path, "--model", model, "--guard", "toy").exit_code == 2
