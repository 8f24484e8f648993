"""`neuraldb remove`: facts taken out of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_model
from neuraldb_faiss.cli.output import count, emit_json, emit_json_list, fact_line, progress, say


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
                    click.echo(fact_line(fact))
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
