"""Facts stored without a model: entries with names and statements, and no keys.

They are for the delivery "text". The database has no model's fingerprint, so residuals can neither be made for it nor
attached; `rebuild` makes one that has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from neuraldb_faiss.config import DatabaseConfig, default_gamma
from neuraldb_faiss.edits.pipeline import Group, Solved
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.fingerprint import Fingerprint
from neuraldb_faiss.guard.registry import DEFAULT as GUARD
from neuraldb_faiss.store import StoredFact
from neuraldb_faiss.store.transaction import now

_WIDTH = 1  # of the keys that there are none of, and of residuals that are zero


class Unsolved:
    """Makes entries of facts without a model, one a fact: takes the place of `solver.editor.Editor`."""

    residual = "none"
    piece = 65_536  # entries that are staged at once

    def __init__(self, config: DatabaseConfig) -> None:
        """config: of a database that was made so, or is to be (`new`)."""
        self._config = config

    @classmethod
    def new(cls, delivery: str = "auto") -> Unsolved:
        """What makes a new database with this delivery."""
        config = DatabaseConfig(
            fingerprint=Fingerprint.none().to_json(), layer=0, ffn_module=None, d1=_WIDTH, d2=_WIDTH, prefixes=(),
            keys="two", residual=cls.residual, config={}, gamma=default_gamma(GUARD), guard=GUARD, delivery=delivery,
        )  # fmt: skip
        return cls(config)

    def settings(self) -> DatabaseConfig:
        return self._config

    def digest(self) -> str:
        return hashlib.sha256(b"unsolved").hexdigest()

    def unheard(self, facts: Sequence[Fact]) -> list[int]:
        """None: what is stated need not fire."""
        return []

    def key_ids(self, facts: Sequence[Fact]) -> list[str]:
        """No two facts share an entry."""
        return [fact.identity for fact in facts]

    def solve_piece(self, piece: Sequence[Group]) -> Solved:
        """Entries without keys for one piece."""
        time = now()
        facts = [
            StoredFact.of(fact, time=time, entry=at, key_id=group.key_id, residual=self.residual)
            for at, group in enumerate(piece)
            for fact in group.facts
        ]
        none = np.empty(0, np.int64)
        keys, residuals = (
            np.empty((0, self._config.d1), np.float32),
            np.zeros((len(piece), self._config.d2), np.float32),
        )
        return Solved(keys, none, none, residuals, facts, [])
