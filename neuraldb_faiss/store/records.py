"""Rows of the catalog as values."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from neuraldb_faiss.facts import Fact


@dataclass(frozen=True, kw_only=True)
class StoredFact(Fact):
    """A fact with what the database knows of it.

    Attributes:
        entry: id of the entry that serves it (while staging: row within the staged piece).
        key_id: facts of equal key_id have the same key (same tokens up to the subject's end); "@0" at its end marks
            the entry that serves a subject which is the text's first token there, beside one for all other places.
        residual: kind of its residual ("memit", "pmet", "none").
        loss: final value of the objective (eq. 21), None where there was no residual to solve.
        nll, probability: of the target behind the raw prompt, mean per token; took: all its tokens were arg-max.
        sources: names of where it came from; several after a merge.
        made, ended: generations; ended is None while it lives.
        state: "live"; "suspended" (does not fire) or "contested" (its entry shares a key with another):
            both wait to be solved anew.
    """

    entry: int
    key_id: str
    time: str
    residual: str
    loss: float | None = None
    nll: float | None = None
    probability: float | None = None
    took: bool | None = None
    sources: tuple[str, ...] = ()
    made: int | None = None
    ended: int | None = None
    state: str = "live"
    row: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, fact: Fact, **known: Any) -> StoredFact:
        """`fact` with these attributes; what an earlier record of it knew (time, sources) is kept."""
        plain = {name: getattr(fact, name) for name in _FACT_FIELDS}
        if isinstance(fact, StoredFact):
            known = {**known, "time": fact.time, "sources": fact.sources}
        return cls(**plain, **known)

    def fact(self) -> Fact:
        """Without what the database knows of it."""
        return Fact(**{name: getattr(self, name) for name in _FACT_FIELDS})

    def to_dict(self) -> dict[str, Any]:
        """JSON form: the fact's own fields, then the database's."""
        mine = {name: getattr(self, name) for name in (
            "entry", "time", "residual", "loss", "nll", "probability", "took", "made", "ended", "state"
        )}  # fmt: skip
        return {**Fact.to_dict(self), "id": self.id, **mine, "sources": list(self.sources)}


_FACT_FIELDS = tuple(spec.name for spec in fields(Fact) if spec.init)


@dataclass(frozen=True)
class Generation:
    """One committed change."""

    generation: int
    time: str
    command: str
    added: int
    updated: int
    removed: int
    facts: int
    entries: int
    digest: str

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


FACT_COLUMNS = (
    "id", "identity", "subject", "subject_key", "prompt", "target", "target_true", "relation", "sources",
    "metadata", "entry", "key_id", "time", "residual", "loss", "nll", "probability", "took",
)  # fmt: skip


_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """JSON with one spelling, for digests and comparisons."""
    return _ENCODER.encode(value)


def canonical_rows(rows: Sequence[tuple[Any, ...]]) -> str:
    """`canonical` of each row of plain values, one behind the other: at half the cost a row."""
    parted: list[Any] = [""] * (2 * len(rows) - 1)
    parted[::2] = rows
    # `],"",[` stands between rows and nowhere else: in a text a quotation mark is escaped, and behind the one that
    # ends a text comes a comma or a bracket.
    return canonical(parted)[1:-1].replace('],"",[', "][")


def subject_key(subject: str) -> str:
    """How subjects are looked up: NFC, white space folded."""
    return " ".join(unicodedata.normalize("NFC", subject).split())


def to_row(fact: StoredFact) -> tuple[Any, ...]:
    # A plain fact that came from several sources names them one a line: so an export keeps them apart.
    sources = fact.sources or tuple(filter(None, (fact.source or "").split("\n")))
    return (
        fact.id, fact.identity, fact.subject, subject_key(fact.subject), fact.prompt, fact.target,
        fact.target_true, fact.relation, canonical(sorted(sources)), canonical(dict(fact.metadata)),
        fact.entry, fact.key_id, fact.time, fact.residual, fact.loss, fact.nll,
        fact.probability, None if fact.took is None else int(fact.took),
    )  # fmt: skip


def from_row(row: sqlite3.Row, states: Mapping[int, str]) -> StoredFact:
    sources = tuple(json.loads(row["sources"]))
    return StoredFact(
        subject=row["subject"], prompt=row["prompt"], target=row["target"], id=row["id"],
        target_true=row["target_true"], relation=row["relation"], source=", ".join(sources) or None,
        metadata=json.loads(row["metadata"]), entry=row["entry"], key_id=row["key_id"], time=row["time"],
        residual=row["residual"], loss=row["loss"], nll=row["nll"], probability=row["probability"],
        took=None if row["took"] is None else bool(row["took"]), sources=sources, made=row["made"],
        ended=row["ended"], state=states.get(row["entry"], "live"), row=row["row"],
    )
