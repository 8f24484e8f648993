"""`neuraldb reindex`: another way to search the keys."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import print_generation, progress


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
    print_generation(done, as_json, f"generation {done.generation}: the keys are searched by {settings['kind']}")
