"""`neuraldb tune-layer`: a layer and a gate recommended for a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import FactFiles, ModelChoice
from neuraldb_faiss.cli.output import console, count, emit_json, progress, say
from neuraldb_faiss.cli.param_types import Gammas, Layers

if TYPE_CHECKING:
    from neuraldb_faiss.research.evaluation.tuning_report import Table


@dataclass(frozen=True)
class _Sample:
    """Facts to try, and text in which nothing should fire; None: the samples of this package."""

    facts: Path | None
    limit: int
    text: Path | None


@dataclass(frozen=True)
class _Sweep:
    """What is tried: layers and gammas (None: the usual ones), with one guard."""

    layers: tuple[int, ...] | None
    gammas: tuple[float, ...] | None
    guard: str | None
    ffn_module: str | None


@click.command("tune-layer", epilog=opt.example("neuraldb tune-layer models/SmolLM2-135M-Instruct --limit 20"))
@opt.bundle("model", ModelChoice, click.argument("model"), opt.where)
@opt.bundle(
    "sample",
    _Sample,
    click.option(
        "--facts", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Facts to try, as `neuraldb build` reads them, with paraphrases and neighbours."
        " [default: ten well-known subjects]",
    ),
    click.option(
        "--limit", type=click.IntRange(1), default=10, show_default=True, metavar="N", help="Try the first N facts."
    ),
    click.option(
        "--text", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="Ordinary text, in which nothing should fire: JSON lines with a field `text`. [default: a page of it]",
    ),
)  # fmt: skip
@opt.bundle(
    "sweep",
    _Sweep,
    click.option(
        "--layers", type=Layers(), metavar="LIST",
        help="As in 1-5 or 3,7. [default: some of the lower two thirds, and the model's usual one]",
    ),
    click.option(
        "--gammas", type=Gammas(), metavar="LIST", help="As in 0.45,0.65. [default: 0.35 to 0.85 in steps of 0.1]"
    ),
    opt.guard,
    opt.ffn_module,
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER",
    help="Folder for databases, rows.jsonl, table.md and plots. Layers that are in it are not measured again.",
)  # fmt: skip
@opt.as_json
def tune_layer(model: ModelChoice, sample: _Sample, sweep: _Sweep, out: Path | None, as_json: bool) -> None:
    """Recommend a layer and a gate for MODEL, by trying a few facts at several layers.

    Solves the facts at each layer and measures whether their own prompts and paraphrases get the new answer, whether
    prompts about other subjects stay as they were, and, for every gamma, what fires there and in ordinary text.
    """
    from neuraldb_faiss.facts.readers import check_texts
    from neuraldb_faiss.research.evaluation import sample as ours

    model.check()
    files = FactFiles((str(sample.facts or ours.FACTS),), limit=sample.limit, on_conflict="first")
    facts = files.load().folded.facts
    check_texts(sample.text or ours.TEXT)
    from neuraldb_faiss.research.evaluation import tuning
    from neuraldb_faiss.research.evaluation import tuning_report as told

    loaded, tokenizer = model.load()
    done = tuning.tune(
        loaded, tokenizer, facts, layers=sweep.layers, gammas=sweep.gammas or tuning.GAMMAS,
        guard=sweep.guard or "subject", text=sample.text or ours.TEXT, out=out,
        ffn_module=sweep.ffn_module, stage=progress,
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
