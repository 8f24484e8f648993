"""Build, add, update, remove and solve: each is one transaction and makes one generation."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from neuraldb_faiss.config import IndexConfig, same_place
from neuraldb_faiss.edits.pipeline import (
    HEAD,
    Planner,
    Progress,
    Report,
    Solve,
    edit_into,
    group_by_key,
    solve_here,
    solve_into,
)
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.metadata import clip
from neuraldb_faiss.options import WAIT, WriteOptions, check_names
from neuraldb_faiss.store import Generation, Store, StoredFact, Transaction

if TYPE_CHECKING:  # it imports torch, and removing facts needs none
    from neuraldb_faiss.solver.editor import Editor

logger = logging.getLogger(__name__)

_NAMED = 5  # facts that a message names


def build(
    facts: Sequence[Fact],
    editor: Editor,
    path: str | Path,
    *,
    drop_failed: bool = False,
    index: IndexConfig | None = None,
    **options: Unpack[WriteOptions],
) -> Store:
    """A new database of these facts (folded: one target a subject and prompt) at `path`.

    Facts that could never fire (`Planner.unheard`) are left out: a warning is logged, and `report` is told.

    Raises: see `build_by`.
    """
    solve = solve_here(editor, drop_failed)
    return build_by(facts, editor, solve, path, drop_failed=drop_failed, index=index, **options)


def build_by(
    facts: Sequence[Fact],
    planner: Planner,
    solve: Solve,
    path: str | Path,
    *,
    drop_failed: bool = False,
    index: IndexConfig | None = None,
    **options: Unpack[WriteOptions],
) -> Store:
    """`build`, with the pieces solved by `solve`, perhaps elsewhere; they are staged and published here.

    Raises:
        FactError: there are none, or none of them could ever fire.
        StoreError: `path` holds something else, or the disk fails; what was staged stays for the next try.
    """
    check_names(options, WriteOptions)
    if not facts:
        raise FactError("no facts: the input is empty, or every record was bad")
    facts, report = _heard(planner, facts, options.get("report"))
    command = options.get("command", "build")
    settings = replace(planner.settings(), index=index or IndexConfig()).to_json()
    # A build that failed before anything was staged leaves no trace.
    with Store.creating(path, settings, command, wait=options.get("wait", WAIT), keep_staged=True) as store:
        with store.write(command) as transaction:
            groups = group_by_key(zip(planner.key_ids(facts), facts, strict=True))
            solve_into(transaction, planner, groups, solve, drop_failed=drop_failed, report=report)
            transaction.commit()
    return store


def add(
    store: Store,
    editor: Editor,
    facts: Iterable[Fact],
    *,
    drop_failed: bool = False,
    report: Report | None = None,
    command: str = "add",
    wait: float = 10.0,
) -> Generation | None:
    """Add facts; one with the subject and prompt of a live fact takes its place, if it has another target, or another
    statement or other names of its own.

    Live facts that share a key with a new one are solved anew together with it. None where nothing is new. Facts that
    could never fire are left out, as by `build`.

    Raises:
        FactError: none of the new ones could ever fire.
    """
    with store.write(command, wait=wait) as transaction:
        base = transaction.base
        incoming = {fact.identity: fact for fact in facts}
        known = {old.identity: old for old in store.catalog.facts(base, identities=list(incoming))}
        fresh = [
            fact for fact in incoming.values() if fact.identity not in known or _says_more(fact, known[fact.identity])
        ]
        if not fresh:
            return None
        fresh, report = _heard(editor, fresh, report)
        keyed = list(zip(editor.key_ids(fresh), fresh, strict=True))
        neighbours = _facts_of_keys(store, base, {key for key, _ in keyed})
        replaced = {fact.identity for fact in fresh}
        kept = [(old.key_id, old) for old in neighbours if old.identity not in replaced]
        edit_into(transaction, editor, group_by_key([*kept, *keyed]), drop_failed=drop_failed, report=report)
        return transaction.commit()


def update(
    store: Store,
    editor: Editor,
    old: StoredFact,
    fact: Fact,
    *,
    report: Report | None = None,
    command: str = "update",
    wait: float = 10.0,
) -> Generation | None:
    """Put a fact in the place of the live fact `old`, whose subject and prompt it need not have. None where it is the
    same.

    Live facts that share a key with either are solved anew.

    Raises:
        FactError: it could never fire, `old` is gone by now, or a third fact has its subject and prompt.
    """
    with store.write(command, wait=wait) as transaction:
        base = transaction.base
        rows = list(store.catalog.facts(base, identities=[old.identity], every_row=True))
        if not rows:
            raise FactError(f"the fact {old.id!r} is gone already; list the facts again")
        if fact.to_dict() == rows[0].fact().to_dict():
            return None
        keys: set[str] = set()
        if fact.identity != old.identity:
            if any(store.catalog.facts(base, identities=[fact.identity])):
                raise FactError(f"another fact has the subject {clip(fact.subject)} and this prompt; update that one")
            transaction.end(row.row for row in rows if row.row is not None)
            keys = {row.key_id for row in rows}
        (fact,), report = _heard(editor, [fact], report)
        keyed = list(zip(editor.key_ids([fact]), [fact], strict=True))
        neighbours = _facts_of_keys(store, base, keys | {key for key, _ in keyed})
        kept = [(one.key_id, one) for one in neighbours if one.identity not in (old.identity, fact.identity)]
        edit_into(transaction, editor, group_by_key([*kept, *keyed]), report=report)
        return transaction.commit()


def _says_more(fact: Fact, old: Fact) -> bool:
    """Whether a fact says something else than the one in its place; what it leaves unsaid may stay."""
    own = {name: value for name in ("statement", "aliases") if (value := fact.metadata.get(name))}
    return fact.target != old.target or any(old.metadata.get(name) != value for name, value in own.items())


def _heard(planner: Planner, facts: Sequence[Fact], report: Report | None) -> tuple[list[Fact], Report | None]:
    """The facts that can fire, and a `report` that is told of the others. Raises FactError where none can."""
    silent = planner.unheard(facts)
    if not silent:
        return list(facts), report
    unheard, gone = tuple(facts[number] for number in silent), set(silent)
    named = "; ".join(f"{clip(fact.subject, 40)} in {clip(fact.text)}" for fact in unheard[:_NAMED])
    more = "; ..." if len(unheard) > _NAMED else ""
    missed = "find the subject in their own prompt as this tokenizer gives it back"
    instead = "subject otherwise, or build with --guard none"
    if same_place(planner.settings().guard, "answer"):
        missed = "read in their own prompt that it asks for them"
        instead = "prompt otherwise, or build with --residual memit"
    why = f"the guard does not {missed} ({named}{more}). Write the {instead}"
    if len(unheard) == len(facts):
        raise FactError(f"none of the {len(facts)} facts could ever fire: {why}")
    logger.warning("%d of %d facts are left out, for they could never fire: %s", len(unheard), len(facts), why)
    left = [fact for number, fact in enumerate(facts) if number not in gone]
    if report is None:
        return left, None
    told = report

    def telling(now: Progress) -> None:
        told(replace(now, unheard=unheard))

    telling(Progress(0, len(facts) - len(unheard), 0, None))
    return left, telling


def remove(
    store: Store,
    doomed: Sequence[StoredFact],
    editor: Editor | None = None,
    *,
    report: Report | None = None,
    command: str = "remove",
    wait: float = 10.0,
) -> Generation:
    """End these facts. Others of the same entry are solved anew with an editor, and wait for `solve` without.

    Raises:
        FactError: there are none, or one is gone by now.
    """
    if not doomed:
        raise FactError("nothing to remove: no live fact fits (`neuraldb facts` lists them)")
    with store.write(command, wait=wait) as transaction:
        gone = {fact.identity for fact in doomed}
        rows = list(store.catalog.facts(transaction.base, identities=sorted(gone), every_row=True))
        if missing := gone - {row.identity for row in rows}:
            raise FactError(f"{len(missing)} of the facts to remove are gone already; list them again")
        transaction.end(row.row for row in rows if row.row is not None)
        if editor is not None:
            _solve_keys(store, transaction.base, editor, transaction, {row.key_id for row in rows}, gone, report)
        return transaction.commit()


def solve(
    store: Store, editor: Editor, *, report: Report | None = None, command: str = "solve", wait: float = 10.0
) -> Generation | None:
    """Solve the entries that wait for it (after a removal or a merge); None where none do."""
    with store.write(command, wait=wait) as transaction:
        waiting = {fact.key_id for fact in store.catalog.facts(transaction.base, waiting=True, every_row=True)}
        if not waiting:
            return None
        _solve_keys(store, transaction.base, editor, transaction, waiting, set(), report)
        return transaction.commit()


def _solve_keys(
    store: Store,
    base: int,
    editor: Editor,
    transaction: Transaction,
    key_ids: set[str],
    without: set[str],
    report: Report | None,
) -> None:
    left = _facts_of_keys(store, base, key_ids)
    groups = group_by_key((fact.key_id, fact) for fact in left if fact.identity not in without)
    if groups:
        edit_into(transaction, editor, groups, report=report)


def _facts_of_keys(store: Store, base: int, key_ids: set[str]) -> Iterator[StoredFact]:
    """Facts with one of these keys, each once, whichever of a group's entries the key_id names."""
    plain = {key_id.removesuffix(HEAD) for key_id in key_ids}
    return store.catalog.facts(base, key_ids=sorted(plain | {key_id + HEAD for key_id in plain}))
