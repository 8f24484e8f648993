"""`neuraldb rebuild`: the facts of a database solved again for another model or layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_database import Build
from neuraldb_faiss.cli.build_report import database_counts, solved_lines
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import duration, emit_json, key_values, say
from neuraldb_faiss.cli.sections import Sectioned
from neuraldb_faiss.cli.solver_options import solver_options
from neuraldb_faiss.config import same_place
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.solver.objectives.registry import REGISTRY as OBJECTIVES


@click.command(cls=Sectioned, epilog=opt.example("neuraldb rebuild db --out db-qwen --model Qwen/Qwen2.5-7B"))
@opt.db
@opt.new_database
@opt.model_required
@solver_options
@opt.as_json
def rebuild(db: Path, out: Path, model: ModelChoice, settings: dict[str, Any], as_json: bool) -> None:
    """Build the facts of DB again for another model or layer, in a new database.

    The facts come from DB's catalog alone. Residual, keys and guard are of DB's kind unless they are named; a residual
    for another place in texts brings its own guard. If it is interrupted, run the same command again to resume.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        facts, old = database.facts(), database.config
    if not facts:
        raise FactError(f"{db} holds no facts to build anew")
    kept = {"delivery": old.delivery}
    if old.has_model:
        kept |= {"residual": old.residual, "keys": old.keys}
        if same_place(OBJECTIVES[settings.get("residual", old.residual)].guard, old.guard):
            kept["guard"] = old.guard
    made = Build(out, model, f"rebuild {db.name}", {**kept, **settings}).run(facts)
    if as_json:
        emit_json(made)
        return
    key_values({**database_counts(made), **solved_lines(made["failed"], made["unheard"], out)})
    say(f"done in {duration(made['seconds'])}")
