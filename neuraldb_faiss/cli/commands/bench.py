"""`neuraldb bench`: time ratios measured side by side in one run."""

from __future__ import annotations

import os
import platform
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import emit_json, key_values, say
from neuraldb_faiss.cli.param_types import Choice

WHAT = ("lookup", "build", "search", "merge", "refresh", "open", "ground", "start", "serve")


@dataclass(frozen=True)
class _Sizes:
    """What is measured, and how often; None: the default of the benchmark."""

    guards: tuple[str, ...]
    facts: int | None
    d1: int | None
    d2: int
    repeats: int
    work: Path | None
    peers: tuple[str, ...]
    servers: tuple[str, ...]
    clients: tuple[int, ...]
    requests: int


@click.command(
    epilog=opt.example(
        "neuraldb bench lookup --db db",
        "neuraldb bench open --facts 1000000",
        "neuraldb bench start --db db",
        "neuraldb bench serve --server ours=http://127.0.0.1:8000/v1 --server theirs=http://127.0.0.1:9000/v1",
    )
)
@click.argument("what", metavar="WHAT", type=Choice(WHAT))
@click.option(
    "--db", type=click.Path(path_type=Path), metavar="DB", help="lookup, build, search, start, serve: the database."
)
@opt.model
@opt.bundle(
    "sizes",
    _Sizes,
    click.option(
        "--guard", "guards", type=opt.guards, multiple=True, default=["subject"], show_default=True,
        help="lookup: measure with this guard. Repeatable.",
    ),
    click.option(
        "--facts", type=click.IntRange(1),
        help="Size of each database; build: number of facts; search: number of keys. [default: 100,000; build: 8]",
    ),
    click.option("--d1", type=click.IntRange(1), help="Length of a key. [default: 1536; search: as the database's]"),
    click.option("--d2", type=click.IntRange(1), default=576, show_default=True, help="Length of a residual."),
    click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Timed runs of each."),
    click.option(
        "--work", type=click.Path(path_type=Path), metavar="DIR",
        help="Folder to work in. [default: a temporary folder]",
    ),
    click.option(
        "--peer", "peers", multiple=True, metavar="NAME",
        help="search: besides NumPy and sketch, also torch, flat, sq8, ivf, hnsw or usearch. Repeatable.",
    ),
    click.option(
        "--server", "servers", multiple=True, metavar="NAME=URL",
        help="serve: a running server of OpenAI's API, beside that of --db. Repeatable.",
    ),
    click.option(
        "--clients", type=click.IntRange(1), multiple=True, default=[1, 4, 16], show_default=True, metavar="N",
        help="serve: clients that ask at once. Repeatable.",
    ),
    click.option(
        "--requests", type=click.IntRange(1), default=36, show_default=True, metavar="N",
        help="serve: requests of all clients together, in each turn.",
    ),
)  # fmt: skip
@opt.as_json
def bench(what: str, db: Path | None, model: ModelChoice, sizes: _Sizes, as_json: bool) -> None:
    """Measure what an attached database, building, searching, merging, or opening costs: ratios, side by side in one
    run.

    lookup: prefill and decode of a model with --db attached, against without, taking turns. build: keys and residuals
    of --facts facts of --db, against one fact at a time. search: the nearest of --db's keys, brought to length --d1,
    against NumPy. The others make databases up. merge: merging two databases, by copying and by linking, against
    `cp -r` of the same bytes. refresh: a live matcher moving to the generation that added 100 facts, against opening
    the database anew, with and without guard. open: opening to the first answer, and adding 100 facts. ground: finding
    the facts that a prompt of 1,000 tokens names among --facts, and editing them, without a model; with --model also
    the tokens that their statements add to a chat, and the time to the first token with them. start: processor seconds
    of new processes until a wrong command is refused, of --help, facts and info, and with --db those of `generate`
    against transformers alone. serve: tokens a second and latency of a server of --db, or of running ones (--server),
    asked by several clients at once for answers of mixed lengths; several servers take turns.
    """
    if what in ("lookup", "build", "search"):
        if db is None:
            raise click.UsageError(f"say which database: bench {what} --db DB")
        found = _on_database(what, db, model, sizes)
    elif what == "ground":
        found = _grounding(model, sizes)
    elif what == "start":
        found = _starting(db, sizes)
    elif what == "serve":
        found = _serving(db, model, sizes)
    else:
        from neuraldb_faiss.research.benchmarks import lifecycle

        facts, d1 = sizes.facts or 100_000, sizes.d1 or 1536
        say(f"making databases of {facts:,} facts")
        with tempfile.TemporaryDirectory(dir=sizes.work, prefix="neuraldb-bench-") as folder:
            made = getattr(lifecycle, f"bench_{what}")(
                Path(folder), facts=facts, d1=d1, d2=sizes.d2, repeats=sizes.repeats
            )
        found = {"d1": d1, "d2": sizes.d2, **made}
    report = {"what": what, **found, "cores": os.cpu_count(), "machine": platform.platform()}
    if as_json:
        emit_json(report)
    else:
        key_values({name.replace("_", " "): _shown(value) for name, value in report.items()})


def _grounding(model: ModelChoice, sizes: _Sizes) -> dict[str, Any]:
    from neuraldb_faiss.research.benchmarks.grounding import bench_grounding

    loaded, tokenizer = model.load()
    facts = sizes.facts or 100_000
    say(f"making a database of {facts:,} facts")
    with tempfile.TemporaryDirectory(dir=sizes.work, prefix="neuraldb-bench-") as folder:
        return bench_grounding(
            Path(folder), facts=facts, repeats=sizes.repeats, model=loaded, tokenizer=tokenizer
        )  # fmt: skip


def _starting(db: Path | None, sizes: _Sizes) -> dict[str, Any]:
    from neuraldb_faiss.research.benchmarks.start import bench_start

    with tempfile.TemporaryDirectory(dir=sizes.work, prefix="neuraldb-bench-") as folder:
        return bench_start(Path(folder), db=db, repeats=sizes.repeats)


def _serving(db: Path | None, model: ModelChoice, sizes: _Sizes) -> dict[str, Any]:
    from neuraldb_faiss.research.benchmarks.serving import bench_serving, served

    servers: dict[str, str] = dict(one.partition("=")[::2] for one in sizes.servers)
    if not servers and db is None:
        raise click.UsageError("say which database, or which servers: bench serve --db DB, or --server NAME=URL")
    if any(not url.startswith("http://") for url in servers.values()):
        raise click.UsageError("--server takes a name and an address: --server ours=http://127.0.0.1:8000/v1")
    with ExitStack() as stack:
        if db is not None:
            say(f"starting a server of {db}")
            servers["neuraldb"] = stack.enter_context(served(db, model.model))
        return bench_serving(servers, clients=sizes.clients, number=sizes.requests, repeats=sizes.repeats)


def _on_database(what: str, db: Path, model: ModelChoice, sizes: _Sizes) -> dict[str, Any]:
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        if what == "search":
            from neuraldb_faiss.research.benchmarks.search import bench_keys

            return bench_keys(
                database.snapshot, facts=sizes.facts or 100_000, d1=sizes.d1, repeats=sizes.repeats, peers=sizes.peers
            )
        loaded, tokenizer = model.load_for(database)
        if what == "build":
            from neuraldb_faiss.research.benchmarks.building import bench_build
            from neuraldb_faiss.solver.editor import Editor

            editor = Editor.new(loaded, tokenizer, layer=database.layer)
            return bench_build(editor, database.facts(limit=sizes.facts or 8), repeats=sizes.repeats)
        from neuraldb_faiss.research.benchmarks.lookup import bench_lookup

        return bench_lookup(database, loaded, tokenizer, guards=sizes.guards, repeats=sizes.repeats)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        if not all(isinstance(one, dict) and "low" in one for one in value.values()):
            return ", ".join(f"{name} {one}" for name, one in value.items())
        times = (f"{name} {one['median']:.3f} ({one['low']:.3f}-{one['high']:.3f})" for name, one in value.items())
        return ", ".join(times)
    return f"{value:,}" if isinstance(value, int) else str(value)
