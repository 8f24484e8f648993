"""Rows of the catalog as values."""

from __future__ import annotations

import json
import math
import sqlite3
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from neuraldb_faiss.errors import CorruptError, FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.metadata import broken_metadata
from neuraldb_faiss.strict_json import BadJSON, is_count, parse_object, parse_strings, shown


@dataclass(frozen=True, kw_only=True)
class StoredFact(Fact):
    """A fact with what the database knows of it.

    Attributes:
        entry: id of the entry that serves it (while staging: row within the staged piece).
        key_id: facts of equal key_id have the same key (same tokens up to the subject's end); "@0" at its end marks
            the entry that serves a subject which is the text's first token, beside one for all other places.
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

    def __repr__(self) -> str:
        """One short line, as lists of facts are looked at; `to_dict` has everything."""
        odd = [word for word, holds in ((self.state, self.state != "live"), ("failed", self.took is False)) if holds]
        return f"<StoredFact {self.id}: {self.text!r} -> {self.target!r}{''.join(f', {word}' for word in odd)}>"

    @classmethod
    def of(cls, fact: Fact, **known: Any) -> StoredFact:
        """`fact` with these attributes; what an earlier record of it knew (time, sources) is kept."""
        plain = {name: getattr(fact, name) for name in _FACT_FIELDS}
        if isinstance(fact, StoredFact):
            known = {**known, "time": fact.time, "sources": fact.sources}
        return cls(**plain, **known)

    def fact(self) -> Fact:
        """Without what the database knows of it, and without metadata that a new fact may not have."""
        plain = {name: getattr(self, name) for name in _FACT_FIELDS}
        broken = broken_metadata(self.metadata)
        return Fact(**{**plain, "metadata": {k: v for k, v in self.metadata.items() if k not in broken}})

    def _check_known(self) -> None:
        """Nothing is refused here: what older versions took stays readable."""

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
        fact.entry, fact.key_id, fact.time, fact.residual, _finite(fact.loss), _finite(fact.nll),
        _finite(fact.probability), None if fact.took is None else int(fact.took),
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def from_row(row: Mapping[str, Any] | sqlite3.Row, states: Mapping[int, str]) -> StoredFact:
    """A whole row of table facts, its columns checked already (`check_columns`).

    Raises:
        CorruptError: its JSON cannot be read, or it breaks a rule of facts.
    """
    try:
        sources = parse_strings(row["sources"])
        return StoredFact(
            subject=row["subject"],
            prompt=row["prompt"],
            target=row["target"],
            id=row["id"],
            target_true=row["target_true"],
            relation=row["relation"],
            source=", ".join(sources) or None,
            metadata=parse_object(row["metadata"]),
            entry=row["entry"],
            key_id=row["key_id"],
            time=row["time"],
            residual=row["residual"],
            loss=row["loss"],
            nll=row["nll"],
            probability=row["probability"],
            took=None if row["took"] is None else bool(row["took"]),
            sources=sources,
            made=row["made"],
            ended=row["ended"],
            state=states.get(row["entry"], "live"),
            row=row["row"],
        )
    except (BadJSON, FactError) as error:
        raise CorruptError(f"row {row['row']} of table facts: {error}") from None


STATES = ("live", "suspended", "contested", "dead")


def _is_text(value: object) -> bool:
    return type(value) is str


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


_TEXT_COLUMNS = (
    "time", "command", "digest", "name", "value", "prefixes", "files", "id", "identity", "subject", "subject_key",
    "prompt", "target", "sources", "metadata", "key_id", "residual", "sql", "plan",
)  # fmt: skip
_COUNT_COLUMNS = (
    "generation", "added", "updated", "removed", "facts", "entries", "keys", "segment", "row", "entry", "counter",
)  # fmt: skip
# What a column of this name may hold, in any table. A STRICT table says so too, but a file can be made otherwise.
_COLUMNS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_TEXT_COLUMNS, _is_text),
    **dict.fromkeys(_COUNT_COLUMNS, is_count),
    **dict.fromkeys(("made", "ended"), _or_none(is_count)),
    **dict.fromkeys(("target_true", "relation"), _or_none(_is_text)),
    **dict.fromkeys(("loss", "nll", "probability"), _or_none(lambda v: type(v) is float and math.isfinite(v))),
    "took": _or_none(lambda value: type(value) is int and value in (0, 1)),
    "state": lambda value: value in STATES,
}


def check_columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Whether rows that were read hold what columns of these names may hold; other names may hold anything.

    Raises:
        CorruptError: the first value that cannot be.
    """
    for at, name in enumerate(names):
        fits = _COLUMNS.get(name)
        if fits is None:
            continue
        for row in rows:
            if not fits(row[at]):
                number = f"row {row[names.index('row')]} of table facts: " if "row" in names and name != "row" else ""
                raise CorruptError(f"{number}{name} is {shown(row[at])}, which it cannot be")
