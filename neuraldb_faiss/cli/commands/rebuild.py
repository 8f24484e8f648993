"""`neuraldb rebuild`: the facts of a database solved again for another model or layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_database import build_database
from neuraldb_faiss.cli.build_report import about, cannot_fire, failed_text
from neuraldb_faiss.cli.output import duration, emit_json, key_values, say
from neuraldb_faiss.cli.solver_options import checked_settings, new_database, solver_options
from neuraldb_faiss.errors import FactError


@click.command()
@opt.db
@new_database
@opt.model_required
@solver_options
def rebuild(db: Path, out: Path, model: str, as_json: bool, **making: Any) -> None:
    """Build the facts of DB anew for another model or layer, from its catalog alone.

    Residual, keys and guard are of DB's kind unless named. Killed, the same command goes on where it was.
    """
    settings = checked_settings(making)
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        facts, old = database.facts(), database.config
    if not facts:
        raise FactError(f"{db} holds no facts to build anew")
    kept = {"residual": old.residual, "keys": old.keys, "guard": old.guard}
    settings = {**kept, **settings}
    made = build_database(facts, out, model, f"rebuild {db.name}", settings)
    if as_json:
        emit_json(made)
        return
    key_values({**about(made), "failed facts": failed_text(made["failed"], out), **cannot_fire(made["unheard"])})
    say(f"done in {duration(made['seconds'])}")
