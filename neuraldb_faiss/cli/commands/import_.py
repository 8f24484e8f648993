"""`neuraldb import`: a database made from an exported safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_model
from neuraldb_faiss.cli.output import count, emit_json, progress, say


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
