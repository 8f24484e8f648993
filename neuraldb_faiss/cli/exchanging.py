"""Commands that move databases in and out: export, import, push."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_model
from neuraldb_faiss.cli.output import count, emit_json, progress, say

STDOUT = "-"
FORMATS = ("jsonl", "safetensors")


@click.command()
@opt.db
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="jsonl: the facts. safetensors: with their vectors. [default: as the name of --out ends, else jsonl]",
)
@click.option("--at", type=int, metavar="GEN", help="As of this generation. [default: the newest]")
@click.option("--out", default=STDOUT, show_default=True, metavar="FILE", help="A new file, or - for stdout.")
@click.option("--skip-bad", is_flag=True, help="jsonl: leave out facts that cannot be read, and name them on stderr.")
@opt.as_json
def export(db: Path, format_: str | None, at: int | None, out: str, skip_bad: bool, as_json: bool) -> None:
    """Write a database's facts to a file that others read.

    JSON lines hold what `neuraldb build` and `neuraldb add` read. A safetensors file also holds the vectors and all
    that the database knows of its facts: `neuraldb import` makes an equal database of it, without a model.
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


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@opt.into_or_out
@opt.where
@opt.wait
@opt.as_json
def import_(
    file: Path,
    out: Path | None,
    into: Path | None,
    on_conflict: str,
    gamma: float | None,
    model: str | None,
    device: str | None,
    dtype: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Make a database of a safetensors file that `neuraldb export` wrote, or take it into one. No model is needed.

    Facts without vectors (JSON lines) are for `neuraldb build` and `neuraldb add`.
    """
    if (out is None) == (into is None):
        raise click.UsageError("say where to import to: --out NEW or --into DB")
    if model is not None and into is None:
        raise click.UsageError("--model belongs to --into: a new database needs none")
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.exchange.import_file import import_file
    from neuraldb_faiss.exchange.read_file import VectorFile

    VectorFile(file)  # refused before a model is loaded
    loaded, tokenizer = (None, None) if model is None else load_model(model, device, dtype)
    with progress("importing") as report:
        store = import_file(
            file,
            out=out,
            into=into,
            on_conflict=on_conflict,
            gamma=gamma,
            model=loaded,
            tokenizer=tokenizer,
            report=report,
            command=f"import {file.name}",
            wait=wait,
        )
    with NeuralDB(store) as database:
        info = database.info()
    if as_json:
        emit_json(info)
        return
    click.echo(f"{info['path']}: generation {info['generation']}, {count(info['facts'], 'fact')}")
    if info["waiting"]:
        say(f"{count(info['waiting'], 'fact')} wait to be solved: `neuraldb solve {info['path']}`")


@click.command()
@opt.db
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made. [default: the hub's]")
@click.option("--revision", metavar="BRANCH", help="The branch to push to; made where it is missing. [default: main]")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--licence", metavar="ID", help="Of the facts, as the hub abbreviates it (mit, cc-by-4.0): for the card.")
@opt.as_json
def push(
    db: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    licence: str | None,
    as_json: bool,
) -> None:
    """Put a database on the model hub as REPO (OWNER/NAME), as one commit, with a card.

    The history goes along, and with it facts that were removed since: `neuraldb compact` ends it first. The hub's own
    settings count: HF_TOKEN or `hf auth login`, HF_HOME, HF_ENDPOINT.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database, progress("pushing"):
        url = database.push_to_hub(
            repo, private=private or None, revision=revision, commit_message=message, license=licence
        )
    if as_json:
        emit_json({"repo": repo, "revision": revision or "main", "commit": url})
    else:
        click.echo(url)
