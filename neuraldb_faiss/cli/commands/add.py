"""`neuraldb add`: more facts for a database."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_report import UnheardRecorder, input_counts, input_lines, solved_lines
from neuraldb_faiss.cli.loading import FactFiles, ModelChoice
from neuraldb_faiss.cli.output import emit_json, key_values, progress
from neuraldb_faiss.cli.sections import Sectioned


@click.command(
    cls=Sectioned,
    epilog=opt.example(
        "neuraldb add db more.csv",
        "neuraldb add db --subject Nokia --prompt 'The CEO of {} is' --target 'Justin Hotard'",
    ),
)
@opt.db
@opt.fact_files
@opt.model
@opt.drop_failed
@opt.wait
@opt.as_json
def add(
    db: Path, files: FactFiles, model: ModelChoice, drop_failed: bool, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Add facts to a database; a fact with the subject and prompt of one in it replaces that one."""
    from neuraldb_faiss.database import NeuralDB

    given = files.load()
    with NeuralDB.open(db, "rw") as database:
        loaded, tokenizer = model.load_to_solve(database)
        with progress("adding") as report:
            recorder = UnheardRecorder(report)
            done = database.add(
                given.folded.facts,
                loaded,
                tokenizer,
                drop_failed=drop_failed,
                report=recorder,
                wait=wait,
                command=files.command("add"),
            )
        failed = database.info()["failed"]
        facts, generation = len(database), database.generation
    added, updated = (done.added, done.updated) if done else (0, 0)
    if as_json:
        emit_json(
            {
                "generation": generation,
                "added": added,
                "updated": updated,
                "facts": facts,
                **input_counts(given),
                "failed": failed,
                "unheard": [fact.id for fact in recorder.unheard],
            }
        )
        return
    key_values(
        {
            "generation": generation if done else f"{generation} (nothing was new)",
            "added": added,
            "updated": updated,
            "facts": f"{facts:,}",
            **input_lines(given, files.on_conflict),
            **solved_lines(failed, recorder.unheard, db),
        }
    )
