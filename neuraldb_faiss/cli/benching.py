"""bench: ratios measured side by side in one run."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import emit_json, key_values, say

WHAT = {"merge": "bench_merge", "refresh": "bench_refresh"}


@click.command()
@click.argument("what", type=click.Choice(list(WHAT)))
@click.option("--facts", type=click.IntRange(1), default=100_000, show_default=True, help="Size of each database.")
@click.option("--d1", type=click.IntRange(1), default=1536, show_default=True, help="Length of a key.")
@click.option("--d2", type=click.IntRange(1), default=576, show_default=True, help="Length of a residual.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed runs of each.")
@click.option(
    "--work", type=click.Path(path_type=Path), metavar="DIR", help="Where to work. [default: a temporary folder]"
)
@opt.as_json
def bench(what: str, facts: int, d1: int, d2: int, repeats: int, work: Path | None, as_json: bool) -> None:
    """Measure what merging or refreshing costs, on made-up databases.

    merge: merging two databases, by copying and by linking, against `cp -r` of the same bytes. refresh: a live
    matcher moving to the generation that added 100 facts, against opening the database anew, with and without guard.
    """
    from neuraldb_faiss.benchmarks import lifecycle

    say(f"making databases of {facts:,} facts")
    with tempfile.TemporaryDirectory(dir=work, prefix="neuraldb-bench-") as folder:
        found = getattr(lifecycle, WHAT[what])(Path(folder), facts=facts, d1=d1, d2=d2, repeats=repeats)
    report = {"what": what, "d1": d1, "d2": d2, **found, "cores": os.cpu_count(), "machine": platform.platform()}
    if as_json:
        emit_json(report)
    else:
        key_values({name.replace("_", " "): _shown(value) for name, value in report.items()})


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        times = (f"{name} {one['median']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for name, one in value.items())
        return ", ".join(times)
    return f"{value:,}" if isinstance(value, int) else str(value)
