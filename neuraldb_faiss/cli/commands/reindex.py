"""`neuraldb reindex`: another way to search the keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import print_generation, progress


@click.command(epilog=opt.example("neuraldb reindex db --index ivf"))
@opt.db
@opt.bundle(
    "settings",
    opt.index_settings,
    click.option("--index", type=opt.kinds, required=True, help="How keys are searched from now on."),
    opt.lists,
)
@opt.wait
@opt.as_json
def reindex(db: Path, settings: dict[str, Any], wait: float, as_json: bool) -> None:
    """Choose how the keys are searched, and make that index now."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db, "rw") as database, progress("making the index"):
        done = database.reindex(**settings, wait=wait)
    print_generation(done, as_json, f"generation {done.generation}: the keys are searched by {settings['kind']}")
