"""Commands that change a database without new facts: remove, solve, compact, rollback, reindex."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_model, model_of
from neuraldb_faiss.cli.looking import line
from neuraldb_faiss.cli.output import count, emit_json, emit_json_list, progress, say


@click.command()
@opt.db
@click.option("--id", "ids", multiple=True, metavar="ID", help="A fact's id; may be given several times.")
@click.option("--subject", help="All facts about this subject.")
@click.option("--source", metavar="NAME", help="All facts that came from this source.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option(
    "--model",
    metavar="M",
    help="Solve facts that share an entry with a removed one at once. [default: they wait]",
)
@opt.where
@opt.wait
@opt.as_json
def remove(
    db: Path,
    ids: tuple[str, ...],
    subject: str | None,
    source: str | None,
    dry_run: bool,
    model: str | None,
    device: str | None,
    dtype: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Remove facts by id, by subject or by source; given several, all must fit."""
    if not ids and subject is None and source is None:
        raise click.UsageError("say which facts to remove: --id, --subject or --source")
    from neuraldb_faiss.database import NeuralDB

    which: dict[str, Any] = {"ids": list(ids) or None, "subject": subject, "source": source}
    with NeuralDB.open(db, "r" if dry_run else "rw") as database:
        if dry_run:
            doomed = database.doomed(**which)
            if as_json:
                emit_json_list(fact.to_dict() for fact in doomed)
            else:
                for fact in doomed:
                    click.echo(line(fact))
                say(f"{count(len(doomed), 'fact')} would be removed")
            return
        database.doomed(**which)  # refused before a model is loaded
        loaded, tokenizer = (None, None) if model is None else load_model(model, device, dtype)
        with progress("solving what shared an entry") as report:
            done = database.remove(
                **which,
                model=loaded,
                tokenizer=tokenizer,
                report=report,
                wait=wait,
                command=_remove_command(which),
            )
        waiting = database.info()["waiting"]
    if as_json:
        emit_json({**done.to_dict(), "waiting": waiting})
        return
    click.echo(f"generation {done.generation}: {count(done.removed, 'fact')} removed, {done.facts:,} left")
    if waiting:
        say(f"{count(waiting, 'fact')} shared a removed one's entry: silent until `neuraldb solve {db}`")


def _remove_command(which: dict[str, Any]) -> str:
    words = ["remove"]
    if which["ids"]:
        shown = which["ids"][:3]
        words += [f"--id {name}" for name in shown] + (["..."] if len(which["ids"]) > 3 else [])
    words += [f"--{name} {which[name]}" for name in ("subject", "source") if which[name] is not None]
    return " ".join(words)


@click.command()
@opt.db
@opt.model
@opt.where
@opt.wait
@opt.as_json
def solve(db: Path, model: str | None, device: str | None, dtype: str | None, wait: float, as_json: bool) -> None:
    """Solve the entries that wait for it, after a removal."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database:
        if not database.info()["waiting"]:
            if as_json:
                emit_json({"generation": database.generation, "solved": 0, "facts": len(database)})
            else:
                click.echo("no fact waits to be solved")
            return
        waiting = database.info()["waiting"]
        loaded, tokenizer = model_of(database, model, device, dtype)
        with progress("solving") as report:
            database.solve(loaded, tokenizer, report=report, wait=wait)
        solved = waiting - database.info()["waiting"]
        generation, facts = database.generation, len(database)
    if as_json:
        emit_json({"generation": generation, "solved": solved, "facts": facts})
    else:
        click.echo(f"generation {generation}: {count(solved, 'fact')} solved, {facts:,} in all")


@click.command()
@opt.db
@opt.wait
@opt.as_json
def compact(db: Path, wait: float, as_json: bool) -> None:
    """Rewrite the arrays without what is dead. Ends the history: no rollback to before it."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database:
        before = database.info()["bytes"]
        with progress("compacting"):
            done = database.compact(wait=wait)
        after = database.info()["bytes"]
    if as_json:
        emit_json({**done.to_dict(), "bytes_before": before, "bytes": after})
        return
    click.echo(f"generation {done.generation}: {count(done.facts, 'fact')}, {after:,} bytes (before: {before:,})")
    say(f"the history before generation {done.generation} has ended: there is no rollback past it")


@click.command()
@opt.db
@click.option("--to", "generation", type=int, required=True, metavar="GEN", help="The generation to go back to.")
@opt.wait
@opt.as_json
def rollback(db: Path, generation: int, wait: float, as_json: bool) -> None:
    """Make a new generation equal to an old one; it can itself be rolled back."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database, progress("rolling back"):
        done = database.rollback(generation, wait=wait)
    _tell(
        done,
        as_json,
        f"generation {done.generation} is as generation {generation} was: {count(done.facts, 'fact')}",
    )


@click.command()
@opt.db
@opt.index_required
@opt.lists
@opt.wait
@opt.as_json
def reindex(db: Path, index: str, nlist: int | None, nprobe: int | None, wait: float, as_json: bool) -> None:
    """Choose how the keys are searched, and make that index."""
    settings = opt.index_settings(index, nlist, nprobe)
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database, progress("making the index"):
        done = database.reindex(settings["kind"], nlist=nlist, nprobe=nprobe, wait=wait)
    _tell(done, as_json, f"generation {done.generation}: the keys are searched by {settings['kind']}")


def _tell(done: Any, as_json: bool, sentence: str) -> None:
    if as_json:
        emit_json(done.to_dict())
    else:
        click.echo(sentence)
