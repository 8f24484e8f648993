"""`neuraldb import`: a database made from an exported safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, progress, say
from neuraldb_faiss.errors import FactError


@click.command("import", epilog=opt.example("neuraldb import db.safetensors --out db"))
@click.argument("file", type=click.Path(path_type=Path))
@opt.destination
@opt.model_to_solve
@opt.wait
@opt.as_json
def import_(
    file: Path, destination: opt.Destination, model: ModelChoice, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Make a database of a safetensors file that `neuraldb export` wrote, or add its facts to one. No model is needed.

    Facts without vectors (JSON lines) are for `neuraldb build` and `neuraldb add`.
    """
    destination.require("import to")
    if model.model is not None and destination.into is None:
        raise click.UsageError("--model belongs to --into: a new database needs none")
    if not file.is_file():
        raise FactError(f"there is no file {file}: name one that `neuraldb export` wrote")
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.exchange.import_file import import_file
    from neuraldb_faiss.exchange.read_file import VectorFile

    VectorFile(file)  # refused before a model is loaded
    loaded, tokenizer = model.load()
    with progress("importing") as report:
        store = import_file(
            file,
            out=destination.out,
            into=destination.into,
            on_conflict=destination.on_conflict,
            gamma=destination.gamma,
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
