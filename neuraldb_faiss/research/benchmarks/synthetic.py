"""Databases of made-up vectors, of any size, without a model: what stores are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models import Fingerprint
from neuraldb_faiss.store import Generation, Store, StoredFact
from neuraldb_faiss.store.transaction import now

PIECE = 16_384


def settings(d1: int, d2: int) -> dict[str, object]:
    """As a database for no model has them."""
    fingerprint = Fingerprint("synthetic", 1, d1, d2, 1, 0, "none", (("none", (0,) * 32),))
    return {
        "fingerprint": fingerprint.to_json(), "layer": 0, "ffn_module": None, "d1": d1, "d2": d2, "prefixes": ["The"],
        "keys": "two", "residual": "none", "config": {}, "gamma": 0.65, "model_name": None,
        "epoch": 1, "history_start": 1, "index": {"kind": "flat"},
    }  # fmt: skip


def make(path: Path, facts: int, *, d1: int = 1536, d2: int = 576, first: int = 0) -> Store:
    """A new database of `facts` facts numbered from `first`, two random keys and one random residual each."""
    with Store.creating(path, settings(d1, d2), "synthetic") as store:
        append(store, facts, first=first)
    return store


def append(store: Store, facts: int, *, first: int) -> Generation:
    """Add `facts` more, as one generation. Facts and vectors depend only on their numbers."""
    with store.write("synthetic") as transaction:
        transaction.resume(f"synthetic {first} {facts}")
        for start in range(first, first + facts, PIECE):
            size = min(PIECE, first + facts - start)
            chance = np.random.default_rng(start)
            keys = chance.standard_normal((2 * size, transaction.d1), np.float32)
            keys[1::2] += 2 * keys[::2]  # a fact's two keys are alike, as real ones are
            residuals = chance.standard_normal((size, transaction.d2), np.float32)
            rows = np.repeat(np.arange(size), 2)
            records = [
                StoredFact.of(
                    Fact(f"Subject {start + n}", "{} is located in", "Rome", source="synthetic"),
                    entry=n, key_id=f"{start + n:020x}", time=now(), residual="none",
                )
                for n in range(size)
            ]  # fmt: skip
            transaction.stage(keys, rows, np.full(2 * size, -1, np.int32), residuals, records)
        return transaction.commit()
