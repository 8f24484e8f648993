"""`neuraldb statistics`: key statistics for the weight-editing baselines."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import emit_json, progress, say
from neuraldb_faiss.cli.param_types import Layers


@click.command(epilog=opt.example("neuraldb statistics wikipedia.jsonl.gz --model gpt2-xl --layers 13-17"))
@click.argument("text")
@opt.model_required
@click.option("--layers", type=Layers(), metavar="LIST", help="As in 1-5 or 3,7. [default: all that the methods edit]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="statistics",
    show_default=True,
    metavar="FOLDER",
    help="Folder that keeps the statistics of any number of models.",
)
@click.option("--tokens", type=click.IntRange(1), default=1_000_000, show_default=True, help="Tokens to read.")
@click.option(
    "--max-length", type=click.IntRange(1), default=1024, show_default=True, help="Tokens to read of each text."
)
@opt.as_json
def statistics(
    text: str, model: ModelChoice, layers: tuple[int, ...] | None, out: Path, tokens: int, max_length: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Compute the key statistics that MEMIT, AlphaEdit, RECT, PMET and ROME need (a database needs none).

    TEXT is a file of JSON lines (plain or gzipped) with a field "text", for instance Wikipedia articles, or
    datasets:NAME[:SPLIT]. Statistics that exist already for the same text are not computed again.
    """
    from neuraldb_faiss.facts.readers import check_texts

    check_texts(text)
    model.check()
    from neuraldb_faiss.research.baselines import METHODS, default_settings, make_statistics

    loaded, tokenizer = model.load()
    if layers is None:
        layers = tuple(sorted({layer for name in METHODS for layer in default_settings(name, loaded).layers}))
    with progress("taking statistics", "token") as report:
        made = make_statistics(
            loaded, tokenizer, text, out, layers=layers, tokens=tokens, max_length=max_length, report=report
        )
    if as_json:
        emit_json({str(layer): str(path) for layer, path in made.items()})
        return
    for layer, path in made.items():
        click.echo(f"layer {layer}: {path}")
    say(f"{out} holds the statistics of {len(made)} layers")
