"""`neuraldb tune-layer`: a layer and a gate recommended for a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import load_facts, load_model
from neuraldb_faiss.cli.output import console, count, emit_json, progress, say
from neuraldb_faiss.cli.param_types import Gammas, Layers

if TYPE_CHECKING:
    from neuraldb_faiss.research.evaluation.tuning_report import Table


@click.command("tune-layer")
@click.argument("model")
@click.option(
    "--facts", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="A sample, as `neuraldb build` takes it, with paraphrases and neighbours. [default: ten well-known subjects]",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="Take the first N facts."
)
@click.option(
    "--layers", type=Layers(), metavar="LIST",
    help="As in 1-5 or 3,7. [default: some of the lower two thirds, and the model's usual one]",
)  # fmt: skip
@click.option(
    "--gammas", type=Gammas(), metavar="LIST", help="As in 0.45,0.65. [default: 0.35 to 0.85 in steps of 0.1]"
)
@opt.guard
@click.option(
    "--text", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Ordinary text, in which nothing should fire: JSON lines with a field `text`. [default: a page of it]",
)  # fmt: skip
@click.option(
    "--ffn-module", metavar="PATTERN",
    help='The FFN\'s down-projection, as in "model.layers.{}.mlp.down_proj", where it is not found.',
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Databases, rows.jsonl, table.md and plots. If it is there, layers in it are not measured again.",
)  # fmt: skip
@opt.where
@opt.as_json
def tune_layer(
    model: str, facts: Path | None, limit: int, layers: tuple[int, ...] | None, gammas: tuple[float, ...] | None,
    guard: str | None, text: Path | None, ffn_module: str | None, out: Path | None, device: str | None,
    dtype: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Recommend a layer and a gate for MODEL, by trying a few facts at several layers.

    Solves the facts at each layer and measures whether their own prompts and paraphrases get the new answer, whether
    prompts about other subjects stay as they were, and, for every gamma, what fires there and in ordinary text.
    """
    from neuraldb_faiss.research.evaluation import tuning
    from neuraldb_faiss.research.evaluation import tuning_report as told

    sample = load_facts([str(facts or tuning.SAMPLE_FACTS)], "auto", limit=limit, on_conflict="first", skip_bad=False)
    loaded, tokenizer = load_model(model, device, dtype)
    done = tuning.tune(
        loaded, tokenizer, sample.folded.facts, layers=layers, gammas=gammas or tuning.GAMMAS,
        guard=guard or "subject", text=text or tuning.SAMPLE_TEXT, out=out, ffn_module=ffn_module, stage=progress,
    )  # fmt: skip
    written = [] if out is None else told.write(done, out)
    if as_json:
        emit_json(told.to_json(done))
    else:
        _print(told.layer_table(done), count(len(done.sample.facts), "fact"))
        _print(told.gamma_table(done), f"layer {done.layer}")
        for note in told.notes(done):
            click.echo(note)
        click.echo(f"\nRecommended: --layer {done.layer} --gamma {done.gamma:g}")
        click.echo(f"{done.reason}.")
    if written:
        say(f"{', '.join(path.name for path in written)} in {out}")


def _print(table: Table, title: str) -> None:
    from rich.table import Table as Drawn

    header, rows = table
    drawn = Drawn(title=title, title_justify="left", box=None, pad_edge=False)
    for name in header:
        drawn.add_column(name, justify="right")
    for row in rows:
        drawn.add_row(*row, style="bold" if row[0].startswith("*") else None)
    console().print(drawn)
    click.echo()
