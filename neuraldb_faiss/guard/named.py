"""Entries whose subjects a text names, and why those that do not fire do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # it imports torch
    import torch

    from neuraldb_faiss.guard.gate import Tokens

WAITS = "waits"
CASE = "case"
WORD = "word"
PLACE = "place"
GAMMA = "gamma"
FLOOR = "floor"
NEARER = "nearer"
ANOTHER = "another"
STATED = "stated"
LONGER = "longer"
SAID = "said"
WHY = {
    WAITS: "the fact waits to be solved anew: neuraldb solve",
    CASE: "the text writes the name in another case than the fact does",
    WORD: "a word goes on behind the name",
    PLACE: "no key of the fact was taken at such a place in a text",
    GAMMA: "the cosine does not exceed γ",
    FLOOR: "the cosine is below the floor that is asked for where a text writes a name as here",
    NEARER: "another fact of the same name is nearer",
    ANOTHER: "the text does not ask for the fact",
    STATED: "the text itself says what the fact is about",
    SAID: "the name is part of another fact's target, which the text is saying",
    LONGER: "the name is part of a longer one whose fact is asked for",
}


@dataclass(frozen=True, slots=True)
class Named:
    """An entry whose subject ends at a token, in any case.

    Attributes:
        place: the token, an index into the flattened [B, T] tokens. entry: its id.
        score: the best exact cosine of those of its keys that may answer there; None where none may.
        needed: the cosine that is asked for there: γ, or the floor where that is higher.
        reason: a key of `WHY`; None where it fires.
    """

    place: int
    entry: int
    score: float | None
    needed: float
    reason: str | None

    @property
    def why(self) -> str:
        """`reason` in words; "" where it fires."""
        return "" if self.reason is None else WHY[self.reason]


@runtime_checkable
class NamesSubjects(Protocol):
    """A gate that also tells which entries a text names, and why they do not fire."""

    def named(self, keys: torch.Tensor, tokens: Tokens) -> list[Named]:
        """One a token and entry, by place. keys: [B * T, d1]. tokens: of [B, T], with ids."""
