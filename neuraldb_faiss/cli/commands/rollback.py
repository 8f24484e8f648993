"""`neuraldb rollback`: an earlier generation made current again."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, print_generation, progress


@click.command(epilog=opt.example("neuraldb history db", "neuraldb rollback db --to 3"))
@opt.db
@click.option("--to", "generation", type=int, required=True, metavar="GEN", help="The generation to go back to.")
@opt.wait
@opt.as_json
def rollback(db: Path, generation: int, wait: float, as_json: bool) -> None:
    """Make a new generation that equals an earlier one; it can itself be rolled back."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database, progress("rolling back"):
        done = database.rollback(generation, wait=wait)
    print_generation(
        done,
        as_json,
        f"generation {done.generation} is as generation {generation} was: {count(done.facts, 'fact')}",
    )
