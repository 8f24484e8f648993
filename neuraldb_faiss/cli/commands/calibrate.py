"""`neuraldb calibrate`: higher gates for names that fire in unrelated text."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, plain, progress, say


@click.command(epilog=opt.example("neuraldb calibrate db --text ordinary.jsonl.gz --target-rate 1e-5"))
@opt.db
@click.option(
    "--text", "text", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Ordinary text: JSON lines with a field `text`, plain or gzipped.",
)  # fmt: skip
@click.option(
    "--target-rate", type=click.FloatRange(0, 1), default=1e-4, show_default=True,
    help="Target false-fire rate per token.",
)  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=200_000, show_default=True, help="Tokens of text to read.")
@opt.model
@opt.wait
@opt.as_json
def calibrate(
    db: Path, text: Path, target_rate: float, tokens: int, model: ModelChoice, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Raise the gate for names that fire where their subject is not meant ("Bern" in "Bernoulli").

    Runs ordinary text through the model up to the edited layer, counts where the subject guard and the gate let an
    entry fire though its subject does not end there, and stores for the worst names a floor above every such cosine.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.edits.pipeline import Progress
    from neuraldb_faiss.facts.readers import check_texts

    check_texts(text)
    with NeuralDB.open(db, "rw") as database:
        loaded, tokenizer = model.load_for(database)
        with progress("reading text", "token") as report:
            done = database.calibrate(
                loaded, tokenizer, text, target_rate=target_rate, tokens=tokens, wait=wait,
                report=lambda looked: report(Progress(min(looked, tokens), tokens, 0, None)),
            )  # fmt: skip
        generation = database.generation
    if as_json:
        emit_json(
            {"generation": generation, "tokens": done.tokens, "false_before": done.before, "false_after": done.after,
             "floors": done.floors}
        )  # fmt: skip
        return
    for name, floor in done.floors.items():
        click.echo(f"{floor:.3f}  {plain(name)}")
    say(f"{count(done.before, 'false fire')} in {count(done.tokens, 'token')}, {done.after} with these floors")
