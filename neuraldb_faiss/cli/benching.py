"""bench: ratios measured side by side in one run."""

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

WHAT = {"lookup": "bench_lookup", "merge": "bench_merge", "refresh": "bench_refresh"}


@click.command()
@click.argument("what", type=click.Choice(list(WHAT)))
@click.option("--db", type=click.Path(path_type=Path), metavar="DB", help="lookup: the database to attach.")
@opt.model
@click.option(
    "--guard", "guards", type=click.Choice(["subject", "none"]), multiple=True, default=["subject"], show_default=True,
    help="lookup: with this guard; may be given several times.",
)  # fmt: skip
@opt.where
@click.option("--facts", type=click.IntRange(1), default=100_000, show_default=True, help="Size of each database.")
@click.option("--d1", type=click.IntRange(1), default=1536, show_default=True, help="Length of a key.")
@click.option("--d2", type=click.IntRange(1), default=576, show_default=True, help="Length of a residual.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed runs of each.")
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Where to work. [default: a temporary folder]"
)
@opt.as_json
def bench(
    what: str, db: Path | None, model: str | None, guards: tuple[str, ...], device: str | None, dtype: str | None,
    facts: int, d1: int, d2: int, repeats: int, work: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure what an attached database, merging, or refreshing costs: ratios, side by side in one run.

    lookup: prefill and decode of a model with --db attached, against without, taking turns. The others make databases
    up. merge: merging two databases, by copying and by linking, against `cp -r` of the same bytes. refresh: a live
    matcher moving to the generation that added 100 facts, against opening the database anew, with and without guard.
    """
    if what == "lookup":
        if db is None:
            raise click.UsageError("say which database: bench lookup --db DB")
        found = _lookup(db, model, guards, device, dtype, repeats)
    else:
        from neuraldb_faiss.benchmarks import lifecycle

        say(f"making databases of {facts:,} facts")
        with tempfile.TemporaryDirectory(dir=work, prefix="neuraldb-bench-") as folder:
            made = getattr(lifecycle, WHAT[what])(Path(folder), facts=facts, d1=d1, d2=d2, repeats=repeats)
        found = {"d1": d1, "d2": d2, **made}
    report = {"what": what, **found, "cores": os.cpu_count(), "machine": platform.platform()}
    if as_json:
        emit_json(report)
    else:
        key_values({name.replace("_", " "): _shown(value) for name, value in report.items()})


def _lookup(
    db: Path, model: str | None, guards: tuple[str, ...], device: str | None, dtype: str | None, repeats: int
) -> dict[str, Any]:
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        from neuraldb_faiss.benchmarks.lookup import bench_lookup

        return bench_lookup(database, loaded, tokenizer, guards=guards, repeats=repeats)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        if not all(isinstance(one, dict) and "low" in one for one in value.values()):
            return ", ".join(f"{name} {one}" for name, one in value.items())
        times = (f"{name} {one['median']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for name, one in value.items())
        return ", ".join(times)
    return f"{value:,}" if isinstance(value, int) else str(value)
