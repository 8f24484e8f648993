"""From facts to entries in a store: grouped by key, solved in batches, staged as they are done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuraldb_faiss.editing.editor import Editor
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import StoredFact, Transaction
from neuraldb_faiss.store.records import canonical
from neuraldb_faiss.store.transaction import now

# Facts a staged piece holds, by residual: what a kill can cost is one piece.
PIECE = {"none": 512, "memit": 16}


@dataclass(frozen=True)
class Progress:
    """Where a build stands; `loss` is the mean over the facts solved by this call, None where there is none."""

    done: int
    total: int
    resumed: int
    loss: float | None


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Group:
    """Facts that share a key, and so an entry."""

    key_id: str
    facts: tuple[Fact, ...]


def group_by_key(keyed: Iterable[tuple[str, Fact]]) -> list[Group]:
    """Groups in the order of their first facts."""
    groups: dict[str, list[Fact]] = {}
    for key_id, fact in keyed:
        groups.setdefault(key_id, []).append(fact)
    return [Group(key_id, tuple(facts)) for key_id, facts in groups.items()]


def edit_into(
    transaction: Transaction,
    editor: Editor,
    groups: Sequence[Group],
    *,
    drop_failed: bool = False,
    report: Report | None = None,
    resume: bool = True,
) -> None:
    """Make every group's entry and stage it; what an earlier, killed call staged of the same work is kept.

    The pieces depend only on the groups and the editor, so a resumed build stages the same arrays. With
    `drop_failed`, a group is left out where any of its facts did not take. `resume=False` adds to what the
    transaction has staged itself.

    Raises:
        BuildError: a key or a loss is not finite, or drop_failed leaves nothing.
    """
    pieces = _pieces(groups, PIECE[editor.residual])
    staged = transaction.resume(_plan(editor, groups, drop_failed)) if resume else 0
    sizes = [sum(len(group.facts) for group in piece) for piece in pieces]
    total, done = sum(sizes), sum(sizes[:staged])
    resumed, losses = done, []
    for piece, size in zip(pieces[staged:], sizes[staged:], strict=True):
        losses += _stage(transaction, editor, piece, drop_failed)
        done += size
        if report is not None:
            report(Progress(done, total, resumed, float(np.mean(losses)) if losses else None))


def _pieces(groups: Sequence[Group], size: int) -> list[list[Group]]:
    pieces: list[list[Group]] = []
    room = 0
    for group in groups:
        if room < len(group.facts):
            pieces.append([])
            room = size
        pieces[-1].append(group)
        room -= len(group.facts)
    return pieces


def _plan(editor: Editor, groups: Sequence[Group], drop_failed: bool) -> str:
    digest = hashlib.sha256(f"{editor.digest()} {drop_failed}".encode())
    for group in groups:
        digest.update(
            canonical([group.key_id, [fact.to_dict() for fact in map(_plain, group.facts)]]).encode()
        )
    return digest.hexdigest()


def _plain(fact: Fact) -> Fact:
    return fact.fact() if isinstance(fact, StoredFact) else fact


def _stage(transaction: Transaction, editor: Editor, piece: list[Group], drop_failed: bool) -> list[float]:
    """Solve one piece and stage it; its losses."""
    edited = editor.make_residuals([group.facts for group in piece])
    kept = [
        number
        for number, one in enumerate(edited)
        if not (drop_failed and any(fact is not None and not fact.took for fact in one.facts))
    ]
    # Facts of a group have the same key: the first one's rows stand for all.
    rows = editor.make_keys([piece[number].facts[0] for number in kept])
    time = now()
    facts = []
    for entry, number in enumerate(kept):
        one, group = edited[number], piece[number]
        for fact, outcome in zip(group.facts, one.facts, strict=True):
            known: Mapping[str, object] = {} if outcome is None else {
                "nll": outcome.nll, "probability": outcome.probability, "took": outcome.took
            }  # fmt: skip
            record = {"time": time, "entry": entry, "key_id": group.key_id, "residual": editor.residual,
                      "loss": one.loss, **known}  # fmt: skip
            facts.append(StoredFact.of(fact, **record))
    residuals = (
        np.stack([edited[n].residual for n in kept]) if kept else np.empty((0, editor.site.d2), np.float32)
    )
    if not np.isfinite(residuals).all():
        raise BuildError("a residual is not finite: lower --lr, or use --dtype float32")
    transaction.stage(rows.keys, rows.fact, rows.token, residuals, facts)
    return [one.loss for one in edited if one.loss is not None]
