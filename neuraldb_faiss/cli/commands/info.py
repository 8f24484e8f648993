"""`neuraldb info`: what a database holds and how it was built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import emit_json, key_values


@click.command(epilog=opt.example("neuraldb info db"))
@opt.db
@opt.as_json
def info(db: Path, as_json: bool) -> None:
    """Show what a database holds and how it was built: facts, model, layer, gate, generation, size."""
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
