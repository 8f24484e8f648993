"""Trace of which facts fired where: a list that notebooks show as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

ROWS_SHOWN = 100  # of a trace in a notebook


class Namer:
    """Subjects, targets and token texts, read when a trace is shown and not while the model runs."""

    def __init__(self, newest: Callable[[], Any], decode: Callable[[int], str] | None) -> None:
        """newest: gives the snapshot that answers now. decode: a token id's text; None where no tokenizer is known."""
        self._newest = newest
        self._decode = decode

    def facts(self, entry_id: int, fact_ids: tuple[str, ...]) -> list[Any]:
        """Those of the facts that the entry still serves; none where the catalog cannot be asked."""
        try:
            return [fact for fact in self._newest().facts(entry=entry_id) if fact.id in fact_ids]
        except Exception:  # a closed or removed database, or a source without facts: what is shown says less
            return []

    def token(self, token_id: int | None) -> str | None:
        return None if token_id is None or self._decode is None else self._decode(token_id)


@dataclass(frozen=True, slots=True, repr=False)
class Fire:
    """One token that fired.

    Attributes:
        sequence: row of its batch.
        position: index in its text, from 0, padding not counted.
        entry_id: the entry that fired.
        fact_ids: the facts that it served then.
        score: the exact cosine of the token's key and the stored one.
        token_id: the token; None where the model was given embeddings.
    """

    sequence: int
    position: int
    entry_id: int
    fact_ids: tuple[str, ...]
    score: float
    token_id: int | None = field(default=None, compare=False)
    namer: Namer | None = field(default=None, compare=False)

    @property
    def subject(self) -> str | None:
        """Subject of the facts; None where the database no longer has them."""
        return next((fact.subject for fact in self._facts()), None)

    @property
    def target(self) -> str | None:
        """Targets of the facts, with commas between several; None where the database no longer has them."""
        return ", ".join(dict.fromkeys(fact.target for fact in self._facts())) or None

    @property
    def token(self) -> str | None:
        """Text of the token; None where it is not known (no tokenizer was given to `attach`)."""
        return None if self.namer is None else self.namer.token(self.token_id)

    def _facts(self) -> list[Any]:
        return [] if self.namer is None else self.namer.facts(self.entry_id, self.fact_ids)

    def __repr__(self) -> str:
        fact = f" {self.subject!r} -> {self.target!r}" if self.subject else ""
        token = f" {self.token!r}" if self.token is not None else ""
        return (
            f"<Fire{fact} at token {self.position}{token} of sequence {self.sequence}: entry {self.entry_id},"
            f" cosine {self.score:.4f}>"
        )

    def __reduce__(self) -> Any:  # a copy or a pickle comes without the way to the database
        return Fire, (self.sequence, self.position, self.entry_id, self.fact_ids, self.score, self.token_id)


class Trace(list[Fire]):
    """A list of `Fire`, oldest first."""

    def _repr_html_(self) -> str:
        head = ("sequence", "position", "token", "subject", "target", "cosine", "entry")
        rows = [
            (one.sequence, one.position, one.token, one.subject, one.target, f"{one.score:.4f}", one.entry_id)
            for one in self[:ROWS_SHOWN]
        ]
        more = f"<p>and {len(self) - ROWS_SHOWN:,} more</p>" if len(self) > ROWS_SHOWN else ""
        return _table(head, rows) + more


def handle_html(rows: dict[str, Any]) -> str:
    """One row for each name."""
    return _table((), [*rows.items()])


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    def row(cells: tuple[Any, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape('' if c is None else str(c))}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + (row(head, "th") if head else "") + "".join(row(one, "td") for one in rows) + "</table>"
