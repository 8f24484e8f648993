"""`neuraldb bench`: time ratios measured side by side in one run."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import emit_json, key_values, say

WHAT = ("lookup", "build", "search", "merge", "refresh", "open")


@click.command()
@click.argument("what", type=click.Choice(WHAT))
@click.option("--db", type=click.Path(path_type=Path), metavar="DB", help="lookup, build, search: the database.")
@opt.model
@click.option(
    "--guard", "guards", type=opt.guards, multiple=True, default=["subject"], show_default=True,
    help="lookup: with this guard; may be given several times.",
)  # fmt: skip
@opt.where
@click.option(
    "--facts", type=click.IntRange(1),
    help="Size of each database; build: how many facts; search: keys. [default: 100,000; 8]",
)  # fmt: skip
@click.option("--d1", type=click.IntRange(1), help="Length of a key. [default: 1536; search: as the database's]")
@click.option("--d2", type=click.IntRange(1), default=576, show_default=True, help="Length of a residual.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed runs of each.")
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Where to work. [default: a temporary folder]"
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="search: beside NumPy and sketch, also torch, flat, sq8, ivf, hnsw or usearch; may be given several times.",
)
@opt.as_json
def bench(
    what: str, db: Path | None, model: str | None, guards: tuple[str, ...], device: str | None, dtype: str | None,
    facts: int | None, d1: int | None, d2: int, repeats: int, work: Path | None, peers: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Measure what an attached database, building, searching, merging, or opening costs: ratios, side by side in one
    run.

    lookup: prefill and decode of a model with --db attached, against without, taking turns. build: keys and residuals
    of --facts facts of --db, against one fact at a time. search: the nearest of --db's keys, brought to length --d1,
    against NumPy. The others make databases up. merge: merging two databases, by copying and by linking, against
    `cp -r` of the same bytes. refresh: a live matcher moving to the generation that added 100 facts, against opening
    the database anew, with and without guard. open: opening to the first answer, and adding 100 facts.
    """
    if what in ("lookup", "build", "search"):
        if db is None:
            raise click.UsageError(f"say which database: bench {what} --db DB")
        found = _on_database(what, db, model, guards, device, dtype, facts, d1, repeats, peers)
    else:
        from neuraldb_faiss.research.benchmarks import lifecycle

        facts, d1 = facts or 100_000, d1 or 1536
        say(f"making databases of {facts:,} facts")
        with tempfile.TemporaryDirectory(dir=work, prefix="neuraldb-bench-") as folder:
            made = getattr(lifecycle, f"bench_{what}")(Path(folder), facts=facts, d1=d1, d2=d2, repeats=repeats)
        found = {"d1": d1, "d2": d2, **made}
    report = {"what": what, **found, "cores": os.cpu_count(), "machine": platform.platform()}
    if as_json:
        emit_json(report)
    else:
        key_values({name.replace("_", " "): _shown(value) for name, value in report.items()})


def _on_database(
    what: str, db: Path, model: str | None, guards: tuple[str, ...], device: str | None, dtype: str | None,
    facts: int | None, d1: int | None, repeats: int, peers: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        if what == "search":
            from neuraldb_faiss.research.benchmarks.search import bench_keys

            return bench_keys(database.snapshot, facts=facts or 100_000, d1=d1, repeats=repeats, peers=peers)
        loaded, tokenizer = model_of(database, model, device, dtype)
        if what == "build":
            from neuraldb_faiss.research.benchmarks.building import bench_build
            from neuraldb_faiss.solver.editor import Editor

            editor = Editor.new(loaded, tokenizer, layer=database.layer)
            return bench_build(editor, database.facts(limit=facts or 8), repeats=repeats)
        from neuraldb_faiss.research.benchmarks.lookup import bench_lookup

        return bench_lookup(database, loaded, tokenizer, guards=guards, repeats=repeats)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        if not all(isinstance(one, dict) and "low" in one for one in value.values()):
            return ", ".join(f"{name} {one}" for name, one in value.items())
        times = (f"{name} {one['median']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for name, one in value.items())
        return ", ".join(times)
    return f"{value:,}" if isinstance(value, int) else str(value)
