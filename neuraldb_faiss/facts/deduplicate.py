"""Duplicates are folded, conflicts found: after this every identity stands once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuraldb_faiss.errors import ConflictError, FactError
from neuraldb_faiss.facts.fact import Fact, fold_space
from neuraldb_faiss.facts.metadata import clip

ON_CONFLICT = ("error", "first", "last")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Folded:
    """facts: one per identity, in the order of first appearance; duplicates: facts left out because an equal
    one (same identity, same target) came before; conflicts: identities that had more than one target."""

    facts: list[Fact]
    duplicates: int
    conflicts: int


def fold(facts: Iterable[Fact], on_conflict: str = "error") -> Folded:
    """Folds facts of one identity into one. Targets are compared in NFC with white space folded.

    on_conflict: where one identity has several targets, "error" raises ConflictError with the first ten and
    the count; "first" keeps the first; "last" keeps the last one, in the first one's place.

    Raises ConflictError (see above), and FactError for one id given to two different facts.
    """
    if on_conflict not in ON_CONFLICT:
        raise FactError(f"unknown on-conflict {on_conflict!r}; choose one of {', '.join(ON_CONFLICT)}")
    kept: dict[str, Fact] = {}
    contested: dict[str, list[str]] = {}  # identity -> its targets, folded, in order of appearance
    duplicates = 0
    for fact in facts:
        before = kept.get(fact.identity)
        if before is None:
            kept[fact.identity] = fact
            continue
        old, new = fold_space(before.target), fold_space(fact.target)
        targets = contested.get(fact.identity, [old])
        if new in targets:
            duplicates += 1
        else:
            contested[fact.identity] = [*targets, new]
        if old != new and on_conflict == "last":
            kept[fact.identity] = fact
    if contested and on_conflict == "error":
        raise ConflictError(_describe(kept, contested))
    _check_ids(kept)
    return Folded(list(kept.values()), duplicates, len(contested))


def _describe(kept: dict[str, Fact], contested: dict[str, list[str]]) -> str:
    shown = "; ".join(
        f"{clip(kept[identity].text)}: {' or '.join(clip(target, 40) for target in targets)}"
        for identity, targets in list(contested.items())[:_SHOWN]
    )
    return (
        f"conflicts: {len(contested)} (several targets for one subject and prompt): {shown}"
        f"{'; ...' if len(contested) > _SHOWN else ''}. Keep one each, or choose on-conflict first or last"
    )


def _check_ids(kept: dict[str, Fact]) -> None:
    owners: dict[str, Fact] = {}
    for fact in kept.values():
        owner = owners.setdefault(fact.id, fact)
        if owner is not fact:
            raise FactError(
                f"id {clip(fact.id)} is given to two facts, {clip(owner.text)} and {clip(fact.text)}; "
                "give each its own, or none"
            )
