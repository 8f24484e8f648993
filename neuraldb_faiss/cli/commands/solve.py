"""`neuraldb solve`: vectors for the facts that wait for them."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, progress


@click.command(epilog=opt.example("neuraldb solve db"))
@opt.db
@opt.model
@opt.wait
@opt.as_json
def solve(db: Path, model: ModelChoice, wait: float, as_json: bool) -> None:
    """Solve the facts that wait for it after a removal, a merge or a repair; until then they do not fire."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database:
        if not database.info()["waiting"]:
            if as_json:
                emit_json({"generation": database.generation, "solved": 0, "facts": len(database)})
            else:
                click.echo("no fact waits to be solved")
            return
        waiting = database.info()["waiting"]
        loaded, tokenizer = model.load_for(database)
        with progress("solving") as report:
            database.solve(loaded, tokenizer, report=report, wait=wait)
        solved = waiting - database.info()["waiting"]
        generation, facts = database.generation, len(database)
    if as_json:
        emit_json({"generation": generation, "solved": solved, "facts": facts})
    else:
        click.echo(f"generation {generation}: {count(solved, 'fact')} solved, {facts:,} in all")
