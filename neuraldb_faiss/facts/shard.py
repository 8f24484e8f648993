"""Slices of a set of facts, for building on several machines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts.fact import Fact, fold_space


def shard(facts: Iterable[Fact], i: int, n: int) -> Iterator[Fact]:
    """Slice `i` (from 1) of `n`, in the facts' order.

    The slice is told by SHA-256 of the subject (Unicode NFC, white space folded): the same on every machine,
    and all facts about one subject, which may share a key, are in one slice. The slices 1 to n together are
    all facts, each once. Raises FactError unless 1 <= i <= n.
    """
    if not 1 <= i <= n:
        raise FactError(f"shard {i}/{n} does not exist; of n shards, i runs from 1 to n")
    return (fact for fact in facts if _number(fact.subject, n) == i - 1)


def _number(subject: str, n: int) -> int:
    return int.from_bytes(hashlib.sha256(fold_space(subject).encode()).digest()[:8], "big") % n
