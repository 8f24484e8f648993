"""`neuraldb export`: a database's facts in a file that other programs read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, emit_json, progress, say
from neuraldb_faiss.cli.param_types import Choice

STDOUT = "-"


FORMATS = ("jsonl", "safetensors")


@click.command(epilog=opt.example("neuraldb export db --out facts.jsonl", "neuraldb export db --out db.safetensors"))
@opt.db
@click.option(
    "--format",
    "format_",
    type=Choice(FORMATS),
    help="jsonl: the facts. safetensors: with their vectors. [default: by the suffix of --out, else jsonl]",
)
@click.option("--at", type=int, metavar="GEN", help="As of this generation. [default: the newest]")
@click.option("--out", default=STDOUT, show_default=True, metavar="FILE", help="A new file, or - for stdout.")
@click.option("--skip-bad", is_flag=True, help="jsonl: skip facts that cannot be read, and name them on stderr.")
@opt.as_json
def export(db: Path, format_: str | None, at: int | None, out: str, skip_bad: bool, as_json: bool) -> None:
    """Write a database's facts to a file that other programs read.

    JSON lines hold what `neuraldb build` and `neuraldb add` read. A safetensors file also holds the vectors and all
    else that the database records of its facts: `neuraldb import` makes an equal database of it, without a model.
    """
    if format_ is None:
        format_ = "safetensors" if out.endswith(".safetensors") else "jsonl"
    if skip_bad and format_ != "jsonl":
        raise click.UsageError("--skip-bad is for --format jsonl: a file with vectors is whole, or not written")
    if out == STDOUT and as_json:
        raise click.UsageError("--json tells of a file: name one with --out")
    if out == STDOUT and format_ == "safetensors" and sys.stdout.isatty():
        raise click.UsageError("a safetensors file is nothing for a terminal: name one with --out")
    from neuraldb_faiss.exchange import export as write
    from neuraldb_faiss.store import Store

    to: str | BinaryIO = sys.stdout.buffer if out == STDOUT else out
    store = Store(db)  # not NeuralDB: facts can be saved where arrays are damaged
    try:
        with progress("exporting"):
            done = write(store, to, format_, at=at, on_bad=say if skip_bad else None)
    finally:
        store.close()
    if as_json:
        emit_json({"out": out, "format": format_, **done.__dict__})
    elif out == STDOUT:
        say(f"{count(done.facts, 'fact')} of generation {done.generation}")
    else:
        click.echo(f"{out}: {count(done.facts, 'fact')} of generation {done.generation}, {done.bytes:,} bytes")
