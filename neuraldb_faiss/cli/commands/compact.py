"""`neuraldb compact`: arrays without removed facts, and the end of the history."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, emit_json, progress, say


@click.command(epilog=opt.example("neuraldb compact db"))
@opt.db
@opt.wait
@opt.as_json
def compact(db: Path, wait: float, as_json: bool) -> None:
    """Rewrite the arrays without removed entries, and end the history: there is no rollback to before it."""
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
