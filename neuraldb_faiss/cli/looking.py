"""Commands that look into a database and need no model: info, facts, history, verify."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import console, count, emit_json, emit_json_list, key_values, plain, progress, say

if TYPE_CHECKING:
    from neuraldb_faiss.store import StoredFact

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


@click.command()
@opt.db
@opt.as_json
def info(db: Path, as_json: bool) -> None:
    """What a database is: facts, model, layer, gate, generation, size."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        about = database.info()
    if as_json:
        emit_json(about)
        return
    shown = {name.replace("_", " "): _readable(value) for name, value in about.items() if value is not None}
    key_values(shown)


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" if name != "kind" else str(item) for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


@click.command()
@opt.db
@click.option("--id", "ids", multiple=True, metavar="ID", help="A fact's id; may be given several times.")
@click.option("--subject", help="Facts about this subject.")
@click.option("--contains", metavar="TEXT", help="Facts with this in subject, prompt or target.")
@click.option("--source", metavar="NAME", help="Facts that came from this source.")
@click.option("--failed", is_flag=True, help="Facts that the model still did not say after solving.")
@click.option("--waiting", is_flag=True, help="Facts that wait to be solved anew.")
@click.option("--at", type=int, metavar="GEN", help="As of this generation.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The first N.")
@opt.as_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
def facts(
    db: Path,
    ids: tuple[str, ...],
    subject: str | None,
    contains: str | None,
    source: str | None,
    failed: bool,
    waiting: bool,
    at: int | None,
    limit: int | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """List the facts in a database, in the order they came."""
    if as_json and as_csv:
        raise click.UsageError("choose one of --json and --csv")
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, generation=at) as database:
        found = database.facts(
            ids=list(ids) or None,
            subject=subject,
            contains=contains,
            source=source,
            failed=failed,
            waiting=waiting,
            limit=limit,
        )
        norms = {fact.id: {"key_norms": database.key_norms(fact)} for fact in found} if ids else {}
    if as_json:
        emit_json_list({**fact.to_dict(), **norms.get(fact.id, {})} for fact in found)
    elif as_csv:
        _write_csv(found)
    else:
        for fact in found:
            click.echo(line(fact))
        say(count(len(found), "fact"))


def line(fact: StoredFact) -> str:
    """A fact on one line: id, text, target, and what is odd about it."""
    notes = (("waiting", fact.state != "live"), ("failed", fact.took is False))
    odd = ", ".join(note for note, holds in notes if holds)
    shown = f"{plain(fact.id)}  {plain(fact.text)} → {plain(fact.target)}"
    return f"{shown}  ({odd})" if odd else shown


def _write_csv(found: list[StoredFact]) -> None:
    table = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    table.writeheader()
    for fact in found:
        table.writerow({**fact.to_dict(), "sources": json.dumps(fact.sources, ensure_ascii=False)})


@click.command()
@opt.db
@opt.as_json
def history(db: Path, as_json: bool) -> None:
    """List the generations of a database, oldest first."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        generations = database.history()
    if as_json:
        emit_json([generation.to_dict() for generation in generations])
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("generation", justify="right")
    table.add_column("time", no_wrap=True)
    table.add_column("command", overflow="fold")
    for name in ("added", "updated", "removed", "facts"):
        table.add_column(name, justify="right")
    for one in generations:
        table.add_row(
            str(one.generation),
            one.time.partition(".")[0].removesuffix("Z") + "Z",
            Text(plain(one.command)),
            *(f"{number:,}" if number else "·" for number in (one.added, one.updated, one.removed)),
            f"{one.facts:,}",
        )
    console().print(table)


@click.command()
@opt.db
@click.option("--deep", is_flag=True, help="Read every byte and compare it with its checksum.")
@click.option(
    "--repair",
    is_flag=True,
    help="Take damaged arrays out of service and drop damaged search files; their facts wait for `neuraldb solve`.",
)
@opt.wait
@opt.as_json
def verify(db: Path, deep: bool, repair: bool, wait: float, as_json: bool) -> None:
    """Check a database; exits with 1 where something is wrong and --repair did not mend it."""
    from neuraldb_faiss import integrity
    from neuraldb_faiss.store import Store

    def check(deep: bool) -> tuple[list[Any], int, int]:
        store = Store(db)
        try:
            with progress("reading every byte" if deep else "checking"):
                problems = integrity.check(store, deep=deep)
            last = store.catalog.generations()[-1]
            return problems, last.generation, last.facts
        finally:
            store.close()

    found, generation, number = check(deep or repair)
    if not as_json:
        for one in found:
            click.echo(f"{plain(one.file)}: {plain(one.what)}")
    affected: list[StoredFact] = []
    quarantined: tuple[str, ...] = ()
    problems = found
    if repair and found:
        with progress("repairing"):
            done = integrity.repair(db, wait=wait)
        affected, quarantined = list(done.facts), done.quarantined
        problems, generation, number = check(True)
    if as_json:
        emit_json(
            {
                "path": str(db),
                "generation": generation,
                "deep": deep or repair,
                "ok": not problems,
                "problems": [{"file": one.file, "what": one.what, "segment": one.segment} for one in found],
                **({"quarantined": list(quarantined), "affected": [f.id for f in affected]} if repair else {}),
            }
        )
    elif repair and found:
        for fact in affected:
            click.echo(line(fact))
        if quarantined:
            click.echo(f"quarantined: {', '.join(quarantined)}; {count(len(affected), 'fact')} lost their vectors")
    if problems:
        left = f"{db} has {count(len(problems), 'problem')}"
        raise click.ClickException(
            left if repair else f"{left}: restore it from a copy, or take what is damaged out of service with --repair"
        )
    if affected:
        say(f"{count(len(affected), 'fact')} stay silent until `neuraldb solve {db}` has made their vectors anew")
    if not as_json:
        how = "every byte is as it was written" if deep or repair else "structure and sizes are right"
        click.echo(f"ok: {count(number, 'fact')} at generation {generation}, {how}")
