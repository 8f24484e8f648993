"""Quarantine of damaged arrays; the rest of the database stays usable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from neuraldb_faiss.errors import CorruptError
from neuraldb_faiss.store import files
from neuraldb_faiss.store.fact_filter import VISIBLE
from neuraldb_faiss.store.maintenance import rewrite
from neuraldb_faiss.store.records import Generation, StoredFact
from neuraldb_faiss.store.segments import Segment
from neuraldb_faiss.store.store import Store
from neuraldb_faiss.store.transaction import Transaction
from neuraldb_faiss.store.verify import verify

QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        generation: the one it made; None where every array was whole.
        quarantined: folders, relative to the database, that hold the damaged arrays now.
        facts: those whose vectors were lost; they wait to be solved anew.
    """

    generation: Generation | None
    quarantined: tuple[str, ...] = ()
    facts: tuple[StoredFact, ...] = ()


def repair(store: Store, *, wait: float = 10.0) -> Repaired:
    """Move damaged segments to `quarantine/` and go on without them, as one generation.

    The facts they served stay in the catalog, silent, and wait for `solve`: all but their vectors is known. The other
    segments are rewritten as compaction does, and the history before ends.

    Raises:
        CorruptError: the catalog itself is damaged, or a segment is a link; nothing has changed then.
    """
    with store.write("verify --repair", wait=wait) as tx:
        problems = verify(store, deep=True)
        damaged = {problem.segment for problem in problems if problem.segment is not None}
        beyond = [problem for problem in problems if problem.segment is None]
        if beyond:
            raise CorruptError(
                f"{store.root / beyond[0].file}: {beyond[0].what}. The catalog cannot be rebuilt from anything else:"
                " restore it from a copy, or save what is readable with `neuraldb export` and build anew"
            )
        if not damaged:
            return Repaired(None)
        moved = [_keep(tx, record.name) for record in store.catalog.segments(tx.base) if record.segment in damaged]
        rewrite(tx, without=damaged)
        lost = _served_by_none(tx, damaged)
        for entry in lost:
            tx.set_state(entry, "suspended")
        done = tx.commit()
        facts = store.catalog.facts(done.generation, waiting=True, every_row=True)
        affected = {fact.identity: fact for fact in facts if fact.entry in lost}
        return Repaired(done, tuple(moved), tuple(affected.values()))


def _keep(tx: Transaction, name: str) -> str:
    """A second name for a damaged segment's files; the commit's sweep takes the first one away."""
    folder = tx.root / QUARANTINE / f"{name}-before-{tx.generation}"
    if folder.exists():  # an earlier repair was killed before it committed
        files.remove_tree(folder)
    files.make_folder(folder)
    for path in sorted(files.within(tx.root, tx.root / "segments" / name).glob("*")):
        if path.is_file() and not path.is_symlink():
            files.copy_file(path, folder / path.name)
    files.sync_folder(folder)
    return str(folder.relative_to(tx.root))


def _served_by_none(tx: Transaction, damaged: Iterable[int]) -> set[int]:
    """Entries with live facts that no whole segment holds."""
    known: set[int] = set()
    for record in tx.catalog.segments(tx.base):
        if record.segment not in damaged:
            known.update(map(int, Segment(tx.root, record, tx.d1, tx.d2).entries))
    used = tx.catalog.all(f"SELECT DISTINCT entry FROM facts WHERE {VISIBLE}", {"g": tx.base})
    return {row["entry"] for row in used} - known
