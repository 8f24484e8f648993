"""`neuraldb build`: a new database of the facts in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.build_database import Build
from neuraldb_faiss.cli.build_report import database_counts, input_counts, input_lines, solved_lines
from neuraldb_faiss.cli.loading import FactFiles, ModelChoice
from neuraldb_faiss.cli.output import duration, emit_json, key_values, say
from neuraldb_faiss.cli.param_types import Shard
from neuraldb_faiss.cli.sections import CLUSTER, FACTS, Sectioned, section
from neuraldb_faiss.cli.solver_options import solver_options


def _cluster(ray: str | None, workers: int | None) -> tuple[str, int] | None:
    if (ray is None) != (workers is None):
        raise click.UsageError("--ray and --workers go together: where the cluster is, and how many work there")
    return (ray, workers) if ray is not None and workers is not None else None


@click.command(
    cls=Sectioned,
    epilog=opt.example(
        "neuraldb build facts.csv --out db --model models/SmolLM2-135M-Instruct",
        "neuraldb build facts.jsonl --out db --model Qwen/Qwen2.5-7B --device cuda --index ivf",
        "neuraldb build triples.csv --templates words.toml --out db --model none",
        "zcat facts.jsonl.gz | neuraldb build - --limit 100 --skip-bad --out db --model gpt2-xl",
    ),
)
@opt.bundle(
    "files",
    opt.given_facts,
    opt.reading,
    section(
        FACTS,
        click.option("--shard", type=Shard(), metavar="I/N", help="Take only slice I of N, by a hash of the subject."),
    ),
)
@opt.new_database
@opt.model_or_none
@opt.bundle(
    "cluster",
    _cluster,
    section(
        CLUSTER,
        click.option("--ray", metavar="ADDRESS", help="Build on the Ray cluster there: local, auto, or host:port."),
        click.option(
            "--workers", type=click.IntRange(1), metavar="N", help="Processes on the Ray cluster; each loads the model."
        ),
    ),
)
@solver_options
@opt.as_json
def build(
    files: FactFiles,
    out: Path,
    model: ModelChoice,
    cluster: tuple[str, int] | None,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Build a database of the facts in FACTS: CSV, TSV, JSON lines, CounterFact, zsRE or questions.

    FACTS are files (plain or gzipped), - for stdin, or datasets:NAME[:SPLIT]. A table's first line names its columns:
    subject, prompt and target, in any order. If it is interrupted, run the same command again to resume.
    """
    given = files.load()
    made = Build(out, model, files.command("build"), settings, cluster).run(given.folded.facts)
    if as_json:
        emit_json({**made, **input_counts(given)})
        return
    key_values(
        {
            **database_counts(made),
            **input_lines(given, files.on_conflict),
            **solved_lines(made["failed"], made["unheard"], out),
            "dropped facts": len(given.folded.facts) - made["facts"] - len(made["unheard"]),
        }
    )
    say(f"done in {duration(made['seconds'])}")
    say(f"neuraldb test {out} asks for the facts as people do")
