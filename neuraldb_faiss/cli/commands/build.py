"""`neuraldb build`: a new database of the facts in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_database import build_database
from neuraldb_faiss.cli.build_report import (
    about,
    cannot_fire,
    conflicts_text,
    failed_text,
    history_command,
    input_counts,
)
from neuraldb_faiss.cli.loading import load_facts
from neuraldb_faiss.cli.output import duration, emit_json, key_values, say
from neuraldb_faiss.cli.param_types import Shard
from neuraldb_faiss.cli.solver_options import checked_settings, new_database, solver_options


@click.command()
@opt.fact_files
@new_database
@opt.model_required
@opt.reading
@click.option("--shard", type=Shard(), metavar="I/N", help="Only slice I of N, by a hash of the subject.")
@click.option("--ray", metavar="ADDRESS", help="Build on the Ray cluster there: local, auto, or host:port.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes on the Ray cluster, each with a model.")
@solver_options
def build(
    sources: tuple[str, ...],
    out: Path,
    model: str,
    format_: str,
    limit: int | None,
    on_conflict: str,
    skip_bad: bool,
    shard: tuple[int, int] | None,
    ray: str | None,
    workers: int | None,
    as_json: bool,
    **making: Any,
) -> None:
    """Build a database of the facts in FACTS: JSON lines, CounterFact, zsRE or questions.

    FACTS are files (plain or gzipped), - for stdin, or datasets:NAME[:SPLIT]. Killed, the same command goes
    on where it was.
    """
    if (ray is None) != (workers is None):
        raise click.UsageError("--ray and --workers go together: where the cluster is, and how many work there")
    cluster = (ray, workers) if ray is not None and workers is not None else None
    settings = checked_settings(making)
    given = load_facts(sources, format_, limit=limit, on_conflict=on_conflict, skip_bad=skip_bad, shard=shard)
    made = build_database(
        given.folded.facts, out, model, history_command("build", sources, limit, shard), settings, cluster
    )
    if as_json:
        emit_json({**made, **input_counts(given)})
        return
    key_values(
        {
            **about(made),
            "folded duplicates": given.folded.duplicates,
            "conflicts": conflicts_text(given, on_conflict),
            "skipped bad records": given.skipped,
            "failed facts": failed_text(made["failed"], out),
            **cannot_fire(made["unheard"]),
            "dropped facts": len(given.folded.facts) - made["facts"] - len(made["unheard"]),
        }
    )
    say(f"done in {duration(made['seconds'])}")
