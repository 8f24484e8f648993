"""`neuraldb history`: the generations of a database."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import console, emit_json, plain


@click.command(epilog=opt.example("neuraldb history db"))
@opt.db
@opt.as_json
def history(db: Path, as_json: bool) -> None:
    """List the generations of a database, oldest first: when and by which command, and how many facts changed."""
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
