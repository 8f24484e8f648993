"""`neuraldb explain`: nearest entry, cosine and gate for every token of a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import console, count, emit_json, fact_summaries, plain, say

if TYPE_CHECKING:
    from neuraldb_faiss.inference.explain import Nearest


@click.command()
@opt.db
@click.argument("prompt")
@opt.model
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N tokens that come nearest to an entry.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page instead, with the answers of the model alone and with the database.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="--html: length of the answers, at most.",
)
@opt.gate_now
@opt.index
@opt.where
@opt.as_json
def explain(
    db: Path,
    prompt: str,
    model: str | None,
    top: int | None,
    html: Path | None,
    max_new_tokens: int,
    gamma: float | None,
    guard: str | None,
    index: str,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Show for every token of PROMPT the nearest entry, its cosine, and whether it fires."""
    from neuraldb_faiss.database import NeuralDB

    if html is not None and (as_json or top is not None):
        raise click.UsageError("--html writes a page: it does not go with --json or --top")
    with NeuralDB.open(db) as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        if html is not None:
            from neuraldb_faiss.inspector.rendering import page_of, write_page
            from neuraldb_faiss.inspector.views import Looker

            looker = Looker(database, loaded, tokenizer, gamma=gamma, guard=guard, search=index)
            seen = looker.look(prompt, max_new_tokens=max_new_tokens)
            write_page(page_of(seen, prompt, database.info()), html)
            say(f"written: {html}")
            return
        from neuraldb_faiss.inference.explain import explain as look

        found, gate = look(database, loaded, tokenizer, prompt, gamma=gamma, guard=guard, search=index)
    if top is not None:
        nearest = sorted(found, key=lambda one: (one.entry is None, -one.score))[:top]
        found = sorted(nearest, key=lambda one: one.position)
    if as_json:
        emit_json(
            {
                "prompt": prompt,
                "gamma": gate.gamma,
                "guard": gate.guard,
                "tokens": [
                    {
                        "position": one.position,
                        "token": one.token,
                        "entry": one.entry,
                        "score": round(one.score, 6),
                        "fired": one.fired,
                        "facts": fact_summaries(one.facts),
                    }
                    for one in found
                ],
            }
        )
        return
    _print_table(found)
    say(f"{count(sum(one.fired for one in found), 'token')} fired at gamma {gate.gamma:g}, guard {gate.guard}")


def _print_table(found: list[Nearest]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("at", justify="right")
    table.add_column("token")
    table.add_column("cosine", justify="right")
    table.add_column("fired")
    table.add_column("nearest entry", overflow="fold")
    for one in found:
        facts = "; ".join(f"{plain(fact.subject)} → {plain(fact.target)}" for fact in one.facts)
        cosine = "·" if one.entry is None else f"{one.score:.3f}"
        style = "bold green" if one.fired else "dim" if one.entry is None or one.score < 0.5 else ""
        row = (str(one.position), plain(one.token), cosine, "yes" if one.fired else "", facts)
        table.add_row(*(Text(cell) for cell in row), style=style)
    console().print(table)
