"""`neuraldb add`: more facts for a database."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_report import (
    Listener,
    cannot_fire,
    conflicts_text,
    failed_text,
    history_command,
    input_counts,
)
from neuraldb_faiss.cli.loading import load_facts, model_of
from neuraldb_faiss.cli.output import emit_json, key_values, progress


@click.command()
@opt.db
@opt.fact_files
@opt.model
@opt.reading
@opt.drop_failed
@opt.where
@opt.wait
@opt.as_json
def add(
    db: Path,
    sources: tuple[str, ...],
    model: str | None,
    format_: str,
    limit: int | None,
    on_conflict: str,
    skip_bad: bool,
    drop_failed: bool,
    device: str | None,
    dtype: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Add facts to a database; one with the subject and prompt of a fact in it updates that fact."""
    from neuraldb_faiss.database import NeuralDB

    given = load_facts(sources, format_, limit=limit, on_conflict=on_conflict, skip_bad=skip_bad)
    with NeuralDB.open(db, "rw") as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        with progress("adding") as report:
            listener = Listener(report)
            done = database.add(
                given.folded.facts,
                loaded,
                tokenizer,
                drop_failed=drop_failed,
                report=listener,
                wait=wait,
                command=history_command("add", sources, limit, None),
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
                "unheard": [fact.id for fact in listener.unheard],
            }
        )
        return
    key_values(
        {
            "generation": generation if done else f"{generation} (nothing was new)",
            "added": added,
            "updated": updated,
            "facts": f"{facts:,}",
            "folded duplicates": given.folded.duplicates,
            "conflicts": conflicts_text(given, on_conflict),
            "skipped bad records": given.skipped,
            "failed facts": failed_text(failed, db),
            **cannot_fire(listener.unheard),
        }
    )
