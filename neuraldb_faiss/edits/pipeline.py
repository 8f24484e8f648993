"""Pipeline from facts to entries: grouped by key, solved in pieces, staged piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.first_guess import Solutions
from neuraldb_faiss.solver.objectives.registry import REGISTRY
from neuraldb_faiss.solver.reporting import listening
from neuraldb_faiss.store import StoredFact, Transaction
from neuraldb_faiss.store.records import canonical
from neuraldb_faiss.store.solved import solved_entries
from neuraldb_faiss.store.transaction import now

if TYPE_CHECKING:  # it imports torch
    from neuraldb_faiss.solver.editor import Edited, Editor

# Ends the key_id of a group's second entry, which serves its raw prompts at position 0.
HEAD = "@0"


@dataclass(frozen=True)
class Progress:
    """Where a build stands; `loss` is the mean over the facts staged by this call, None where there is none.

    `unheard` are the facts that were left out because they could never fire (`Planner.unheard`).
    """

    done: int
    total: int
    resumed: int
    loss: float | None
    unheard: tuple[Fact, ...] = ()


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Group:
    """Facts that share a key, and so an entry (or both: see `solve_piece`)."""

    key_id: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Solved:
    """One piece of a build, as `Transaction.stage` takes it, with its losses."""

    keys: np.ndarray
    key_rows: np.ndarray
    key_tokens: np.ndarray
    residuals: np.ndarray
    facts: list[StoredFact]
    losses: list[float]


class Planner(Protocol):
    """What a build asks of an editor before anything is solved; the editor may be in another process."""

    @property
    def residual(self) -> str: ...

    def settings(self) -> DatabaseConfig: ...

    def digest(self) -> str: ...

    def unheard(self, facts: Sequence[Fact]) -> list[int]:
        """Indices of the facts whose own prompt does not pass the guard's reading of it."""

    def key_ids(self, facts: Sequence[Fact]) -> list[str]: ...


# Solves pieces, wherever, from first guesses where there are solutions to make them from; the answers come in the order
# of the pieces.
Solve = Callable[[Sequence[list[Group]], Solutions | None], Iterable[Solved]]

# Entries from which first guesses are made at least, and at most: the newest ones.
LEAST_SOLVED = 512
MOST_SOLVED = 4096


def group_by_key(keyed: Iterable[tuple[str, Fact]]) -> list[Group]:
    """Groups in the order of their first facts; the key_id may be that of either entry, and a fact may come twice."""
    groups: dict[str, dict[str, Fact]] = {}
    for key_id, fact in keyed:
        groups.setdefault(key_id.removesuffix(HEAD), {}).setdefault(fact.identity, fact)
    return [Group(key_id, tuple(facts.values())) for key_id, facts in groups.items()]


def edit_into(
    transaction: Transaction,
    editor: Editor,
    groups: Sequence[Group],
    *,
    drop_failed: bool = False,
    report: Report | None = None,
    resume: bool = True,
) -> None:
    """Make every group's entry and stage it; see `solve_into`."""
    solve_into(
        transaction, editor, groups, solve_here(editor, drop_failed), drop_failed=drop_failed, report=report,
        resume=resume,
    )  # fmt: skip


def solve_here(editor: Editor, drop_failed: bool) -> Solve:
    """One piece after the other, in this process; a planner that solves nothing makes its entries itself."""
    own = getattr(editor, "solve_piece", None)

    def solve(pieces: Sequence[list[Group]], known: Solutions | None) -> Iterator[Solved]:
        if own is not None:
            return (own(piece) for piece in pieces)
        knowing = editor if known is None else editor.knowing(known)
        return (solve_piece(knowing, piece, drop_failed) for piece in pieces)

    return solve


def solve_into(
    transaction: Transaction,
    planner: Planner,
    groups: Sequence[Group],
    solve: Solve,
    *,
    drop_failed: bool = False,
    report: Report | None = None,
    resume: bool = True,
) -> None:
    """Have every group's entry made by `solve` and stage it; what an earlier, killed call staged of it is kept.

    The pieces depend only on the groups, the editor, and the generation that the transaction starts from, so a resumed
    build stages the same arrays, whoever solves. With the optimizer "sampled", residuals of the kinds that take first
    guesses (`ObjectiveKind.guessed`) begin at them as soon as that generation and the pieces before hold LEAST_SOLVED
    entries; the guesses are made anew where these have become twice as many, up to MOST_SOLVED.

    With `drop_failed`, a group is left out where any of its facts did not take. `resume=False` adds to what the
    transaction has staged itself.

    Raises:
        BuildError: a key or a loss is not finite, or drop_failed leaves nothing.
    """
    pieces = _pieces(groups, getattr(planner, "piece", REGISTRY[planner.residual].piece))
    staged = transaction.resume(_plan(planner, groups, drop_failed)) if resume else 0
    sizes = [sum(len(group.facts) for group in piece) for piece in pieces]
    told = _Telling(report, sizes, staged)
    with listening(told.solved):
        for span in _spans(pieces, transaction, planner):
            left = pieces[max(span.start, staged) : span.stop]
            for solved in solve(left, _known(transaction, planner, span)) if left else ():
                transaction.stage(solved.keys, solved.key_rows, solved.key_tokens, solved.residuals, solved.facts)
                told.staged(solved.losses)


def _spans(pieces: Sequence[list[Group]], transaction: Transaction, planner: Planner) -> list[_Span]:
    """The pieces in parts that are solved from the same first guesses, or from none."""
    wanted, entries = LEAST_SOLVED, 0
    if planner.settings().config.get("optimizer") != "sampled" or not REGISTRY[planner.residual].guessed:
        wanted = MOST_SOLVED + 1
    elif transaction.base:
        entries = transaction.catalog.generation_record(transaction.base).entries
    spans = [_Span(0, len(pieces), wanted <= min(entries, MOST_SOLVED))]
    for number, piece in enumerate(pieces):
        if wanted <= min(entries, MOST_SOLVED):
            spans[-1:] = [_Span(spans[-1].start, number, spans[-1].guess), _Span(number, len(pieces), True)]
            while wanted <= entries:
                wanted *= 2
        entries += len(piece)
    return spans


@dataclass(frozen=True)
class _Span:
    """Pieces start..stop, and whether there are entries enough to guess from by then."""

    start: int
    stop: int
    guess: bool


def _known(transaction: Transaction, planner: Planner, span: _Span) -> Solutions | None:
    """What first guesses are made from; None where there is too little."""
    if not span.guess:
        return None
    targets, residuals = solved_entries(transaction, planner.residual, span.start, MOST_SOLVED)
    return Solutions(tuple(targets), residuals) if len(targets) >= LEAST_SOLVED / 2 else None


class _Telling:
    """Reports of where a build stands: at once, after every batch, and after every piece."""

    def __init__(self, report: Report | None, sizes: Sequence[int], staged: int) -> None:
        self._report = report
        self._left = list(sizes[staged:])
        self._total, self._done = sum(sizes), sum(sizes[:staged])
        self._resumed = self._done
        self._within = 0  # facts of this piece that are solved, but not staged
        self._losses: list[float] = []
        self._tell()

    def solved(self, facts: int) -> None:
        """So many more of the piece; the last batch is told once the piece is staged."""
        self._within += facts
        if self._left and self._within < self._left[0]:
            self._tell()

    def staged(self, losses: Sequence[float]) -> None:
        """The piece is on disk."""
        self._done += self._left.pop(0)
        self._within = 0
        self._losses += losses
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            loss = float(np.mean(self._losses)) if self._losses else None
            self._report(Progress(self._done + self._within, self._total, self._resumed, loss))


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


def _plan(planner: Planner, groups: Sequence[Group], drop_failed: bool) -> str:
    digest = hashlib.sha256(f"{planner.digest()} {drop_failed}".encode())
    for group in groups:
        digest.update(canonical([group.key_id, [fact.to_dict() for fact in map(_plain, group.facts)]]).encode())
    return digest.hexdigest()


def _plain(fact: Fact) -> Fact:
    return fact.fact() if isinstance(fact, StoredFact) else fact


def solve_piece(editor: Editor, piece: list[Group], drop_failed: bool) -> Solved:
    """Keys and residuals of one piece.

    A text's first token is unlike all others (its hidden state is some nine times longer), so no one residual serves
    a subject there and behind a prefix: a group with a key taken at position 0 has a second entry for it. Where the
    prompts do not begin with the subject themselves, it is solved on such texts (`leading`).
    """
    from neuraldb_faiss.index.key_tokens import at_start, is_bare
    from neuraldb_faiss.solver.prefixes import leading

    # Facts of a group have the same key: the first one's rows stand for all.
    rows = editor.make_keys([group.facts[0] for group in piece])
    edited = editor.make_residuals([group.facts for group in piece])
    first = at_start(rows.token)
    begun: dict[int, tuple[Fact, ...]] = {}
    for number, bare in zip(rows.fact[first].tolist(), is_bare(rows.token[first]), strict=True):
        facts_there = [text for fact in piece[number].facts for text in leading(fact)] if bare else piece[number].facts
        if facts_there:
            begun[number] = tuple(facts_there)
    alone = editor.make_residuals(list(begun.values()), prefixed=False) if begun else []
    at_head = dict(zip(begun, alone, strict=True))
    time = now()
    facts: list[StoredFact] = []
    kept: list[Edited] = []
    key_at: list[int] = []
    key_rows: list[int] = []
    for number, (group, one) in enumerate(zip(piece, edited, strict=True)):
        head = at_head.get(number)
        raw_there = head is not None and begun[number] is group.facts
        outcomes = (head if raw_there and head else one).facts  # on the raw prompt
        if drop_failed and any(outcome is not None and not outcome.took for outcome in outcomes):
            continue
        mine = rows.fact == number
        entries = [(group.key_id, one, mine & ~first)]
        if head is not None:
            entries.append((group.key_id + HEAD, head, mine & first))
        for key_id, solved, keys in entries:
            for fact, outcome in zip(group.facts, outcomes, strict=True):
                known: Mapping[str, object] = {} if outcome is None else {
                    "nll": outcome.nll, "probability": outcome.probability, "took": outcome.took
                }  # fmt: skip
                record = {"time": time, "entry": len(kept), "key_id": key_id, "residual": editor.residual,
                          "loss": solved.loss, **known}  # fmt: skip
                facts.append(StoredFact.of(fact, **record))
            at = np.flatnonzero(keys).tolist()
            key_at += at
            key_rows += [len(kept)] * len(at)
            kept.append(solved)
    residuals = np.stack([one.residual for one in kept]) if kept else np.empty((0, editor.site.d2), np.float32)
    if not np.isfinite(residuals).all():
        raise BuildError("a residual is not finite: lower --lr, or use --dtype float32")
    order = np.array(key_at, np.int64)
    losses = [one.loss for one in (*edited, *alone) if one.loss is not None]
    return Solved(rows.keys[order], np.array(key_rows, np.int64), rows.token[order], residuals, facts, losses)
