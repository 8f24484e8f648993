"""An editor without a model: vectors are functions of the text, so stores can be tested by the thousand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Edited
from neuraldb_faiss.solver.keys import KeyRows

D1, D2 = 12, 8


def vector(text: str, size: int) -> np.ndarray:
    """float32 [size], standard normal, the same for the same text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def left(fact: Fact) -> str:
    """The text up to the subject's end: what decides a key."""
    return fact.text[: fact.subject_span[1]]


class FakeEditor:
    """Two keys a fact, as in mode "two"; a residual that names the facts it was solved for."""

    residual = "memit"
    site = SimpleNamespace(d1=D1, d2=D2, layer=3)

    def __init__(self, name: str = "fake") -> None:
        self.name = name

    def settings(self) -> DatabaseConfig:
        return DatabaseConfig(
            self.name, layer=3, ffn_module=None, d1=D1, d2=D2, prefixes=("The",), keys="two", residual=self.residual,
            config={}, gamma=0.65,
        )  # fmt: skip

    def digest(self) -> str:
        return self.name

    def unheard(self, facts: Sequence[Fact]) -> list[int]:
        return []

    def key_ids(self, facts: Sequence[Fact]) -> list[str]:
        return [hashlib.sha256(left(fact).encode()).hexdigest()[:20] for fact in facts]

    def make_keys(self, facts: Sequence[Fact]) -> KeyRows:
        keys = [vector(kind + left(fact), D1) * 5 for fact in facts for kind in ("raw ", "mean ")]
        return KeyRows(
            np.array(keys, np.float32).reshape(-1, D1),
            np.repeat(np.arange(len(facts)), 2),
            np.full(2 * len(facts), -1, np.int32),
        )

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        return [Edited(self.residual_of(group), 0.04, (None,) * len(group)) for group in groups]

    def residual_of(self, group: Sequence[Fact]) -> np.ndarray:
        return vector("|".join(sorted(f"{fact.identity} {fact.target}" for fact in group)), D2)
