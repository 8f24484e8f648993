"""A real database grown to any size: what scales are measured on where real facts run out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import Store, StoredFact
from neuraldb_faiss.store.transaction import now

PIECE = 16_384
NOISE = 0.5  # length of what is added to a key of length 1: the cosine with the real one is about 0.9


def grow(source: NeuralDB, path: Path, entries: int, *, seed: int = 0) -> Store:
    """A new database with the first `entries` entries of `source`; those it lacks are made up.

    A made-up entry has a name put together of two real ones (so it may well stand in a text), the keys of a real entry
    with noise, and its residual. The same source, number and seed give the same arrays.
    """
    real = _by_entry(source)
    snapshot, order = source.snapshot, np.argsort(source.snapshot.key_entries, kind="stable")
    owners = np.asarray(snapshot.key_entries)[order]
    settings = replace(source.config, epoch=1, history_start=1).to_json()
    with Store.creating(path, settings, "grown", keep_staged=True) as store, store.write("grown") as transaction:
        transaction.resume(f"grown {source.path} {entries} {seed}")
        for start in range(0, entries, PIECE):
            numbers = np.arange(start, min(start + PIECE, entries))
            chance = np.random.default_rng([seed, start])
            ids = np.array([real[n % len(real)][0].entry for n in numbers], np.int64)
            first, last = np.searchsorted(owners, ids, "left"), np.searchsorted(owners, ids, "right")
            at = order[np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])]
            rows = np.repeat(np.arange(len(ids)), last - first)
            keys = snapshot.keys(at).astype(np.float32)
            made_up = np.flatnonzero(numbers[rows] >= len(real))
            noise = chance.standard_normal((len(made_up), transaction.d1), np.float32) / np.sqrt(transaction.d1)
            keys[made_up] += np.float32(NOISE) * noise
            others = chance.integers(len(real), size=len(numbers))
            records: list[StoredFact] = []
            for place, (n, other) in enumerate(zip(numbers.tolist(), others.tolist(), strict=True)):
                facts: list[Fact] = list(real[n % len(real)])
                if n >= len(real):
                    facts = [_made_up(facts[0], real[other][0].subject, n)]
                records += [
                    StoredFact.of(fact, entry=place, key_id=f"{n:020x}", time=now(), residual="none") for fact in facts
                ]
            tokens = np.asarray(snapshot.key_tokens)[at]
            transaction.stage(keys, rows, tokens, snapshot.residuals(ids), records)
        transaction.commit()
    return store


def _by_entry(source: NeuralDB) -> list[list[StoredFact]]:
    found: dict[int, list[StoredFact]] = {}
    for fact in source.facts():
        found.setdefault(fact.entry, []).append(fact)
    return [found[entry] for entry in sorted(found)]


def _made_up(fact: Fact, other: str, number: int) -> Fact:
    """About a name of the first half of this fact's subject and the last word of another."""
    words = fact.subject.split()
    name = " ".join([*words[: (len(words) + 1) // 2], other.split()[-1]])
    return Fact(name, f"{number}. {fact.template}", fact.target, source="made up")
