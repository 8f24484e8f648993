"""`neuraldb facts`: a list of the facts in a database."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, emit_json_list, fact_line, plain, say

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.store import StoredFact

SHOWN = 3  # subjects that are named where none fits
COLUMNS = (
    "id",
    "subject",
    "prompt",
    "target",
    "target_true",
    "relation",
    "sources",
    "entry",
    "state",
    "residual",
    "loss",
    "nll",
    "probability",
    "took",
    "time",
    "made",
    "ended",
)


@dataclass(frozen=True)
class _Selection:
    """The facts to list: those that fit everything given."""

    ids: tuple[str, ...]
    subject: str | None
    contains: str | None
    source: str | None
    failed: bool
    waiting: bool
    limit: int | None


@click.command(epilog=opt.example("neuraldb facts db --subject 'Eiffel Tower'", "neuraldb facts db --failed --csv"))
@opt.db
@opt.bundle(
    "which",
    _Selection,
    click.option("--id", "ids", multiple=True, metavar="ID", help="The fact with this id. Repeatable."),
    click.option("--subject", help="Facts about this subject."),
    click.option("--contains", metavar="TEXT", help="Facts with this text in subject, prompt or target."),
    click.option("--source", metavar="NAME", help="Facts that came from this source."),
    click.option("--failed", is_flag=True, help="Facts that the model still does not say after solving."),
    click.option("--waiting", is_flag=True, help="Facts that wait to be solved again (`neuraldb solve`)."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N of these facts."),
)
@click.option("--at", type=int, metavar="GEN", help="As of this generation. [default: the newest]")
@opt.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def facts(db: Path, which: _Selection, at: int | None, as_json: bool, as_csv: bool) -> None:
    """List the facts in a database, in the order in which they were added."""
    if as_json and as_csv:
        raise click.UsageError("choose one of --json and --csv")
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, generation=at) as database:
        found = database.facts(
            ids=list(which.ids) or None,
            subject=which.subject,
            contains=which.contains,
            source=which.source,
            failed=which.failed,
            waiting=which.waiting,
            limit=which.limit,
        )
        near = "" if found or which.subject is None else _near(database, which.subject)
        norms = {fact.id: {"key_norms": database.key_norms(fact)} for fact in found} if which.ids else {}
    if as_json:
        emit_json_list({**fact.to_dict(), **norms.get(fact.id, {})} for fact in found)
    elif as_csv:
        _write_csv(found)
    else:
        for fact in found:
            click.echo(fact_line(fact))
        say(count(len(found), "fact"))
        if near:
            say(near)


def _near(database: NeuralDB, subject: str) -> str:
    """What to say where no fact is about `subject`: the subjects with that text in them, whatever the case."""
    like = dict.fromkeys(fact.subject for fact in database.facts(contains=subject, limit=100))
    wanted = subject.casefold()
    named = [plain(one) for one in like if wanted in one.casefold()][:SHOWN]
    if named:
        return (
            f"--subject is the whole name, letter by letter: did you mean {' or '.join(named)}?"
            f" --contains {shlex.quote(subject)} finds parts of names, in either case."
        )
    if like:
        return f"--subject is the whole name; --contains {shlex.quote(subject)} looks in prompts and targets too."
    return "No fact has that text in its subject, prompt or target."


def _write_csv(found: list[StoredFact]) -> None:
    table = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    table.writeheader()
    for fact in found:
        table.writerow({**fact.to_dict(), "sources": json.dumps(fact.sources, ensure_ascii=False)})
