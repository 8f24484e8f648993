"""`neuraldb explain`: nearest entry, cosine and gate for every token of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import console, count, emit_json, fact_summaries, plain, say

if TYPE_CHECKING:
    from neuraldb_faiss.inference.explain import Held, Nearest
    from neuraldb_faiss.store import StoredFact


@dataclass(frozen=True)
class _Page:
    """The page to write, if any, and the length of its answers in tokens."""

    html: Path | None
    max_new_tokens: int


@click.command(epilog=opt.example("neuraldb explain db 'The Eiffel Tower is in the city of' --top 5"))
@opt.db
@click.argument("prompt")
@opt.model
@click.option("--top", type=click.IntRange(1), metavar="N", help="Only the N tokens with the highest cosine.")
@opt.bundle(
    "page",
    _Page,
    opt.new_file(
        "--html",
        metavar="FILE",
        help="Write a page instead, with the answers of the model alone and with the database.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        default=20,
        show_default=True,
        metavar="N",
        help="--html: maximum length of the answers.",
    ),
)
@opt.gate_choice
@opt.as_json
def explain(
    db: Path, prompt: str, model: ModelChoice, top: int | None, page: _Page, gate: opt.GateChoice, as_json: bool
) -> None:  # fmt: skip
    """Show for every token of PROMPT the nearest entry, its cosine, and whether it fires; of subjects that are named
    and do not fire, why; and which facts the delivery text would state in front of it.

    Of a database without a model only these are shown.
    """
    from neuraldb_faiss.database import NeuralDB

    if page.html is not None and (as_json or top is not None):
        raise click.UsageError("--html writes a page: it does not go with --json or --top")
    with NeuralDB.open(db) as database:
        if not database.config.has_model:
            _show_stated(prompt, database.ground(prompt).facts, as_json)
            return
        loaded, tokenizer = model.load_for(database)
        if page.html is not None:
            from neuraldb_faiss.inspector.rendering import page_of, write_page
            from neuraldb_faiss.inspector.views import Looker

            looker = Looker(database, loaded, tokenizer, gamma=gate.gamma, guard=gate.guard, search=gate.index)
            seen = looker.look(prompt, max_new_tokens=page.max_new_tokens)
            write_page(page_of(seen, prompt, database.info()), page.html)
            say(f"written: {page.html}")
            return
        from neuraldb_faiss.inference.explain import explain as look

        found, used = look(database, loaded, tokenizer, prompt, gamma=gate.gamma, guard=gate.guard, search=gate.index)
        stated = database.ground(prompt, tokenizer=tokenizer).facts
    if top is not None:
        nearest = sorted(found, key=lambda one: (one.entry is None, -one.score))[:top]
        found = sorted(nearest, key=lambda one: one.position)
    if as_json:
        emit_json(
            {
                "prompt": prompt,
                "gamma": used.gamma,
                "guard": used.guard,
                "tokens": [
                    {
                        "position": one.position,
                        "token": one.token,
                        "entry": one.entry,
                        "score": round(one.score, 6),
                        "fired": one.fired,
                        "facts": fact_summaries(one.facts),
                        "held": [_held_json(held) for held in one.held],
                    }
                    for one in found
                ],
                "stated": fact_summaries(stated),
            }
        )
        return
    _print_table(found)
    _print_held(found)
    say(f"{count(sum(one.fired for one in found), 'token')} fired at gamma {used.gamma:g}, guard {used.guard}")
    _show_stated(prompt, stated, as_json)


def _show_stated(prompt: str, stated: tuple[StoredFact, ...], as_json: bool) -> None:
    if as_json:
        emit_json({"prompt": prompt, "tokens": [], "stated": fact_summaries(stated)})
        return
    for fact in stated:
        console().print(f"stated  {plain(fact.statement)}", markup=False, highlight=False, soft_wrap=True)
    say(f"{count(len(stated), 'fact')} would be stated (--delivery text)")


def _held_json(held: Held) -> dict[str, object]:
    score = None if held.score is None else round(held.score, 6)
    known = {"entry": held.entry, "score": score, "needed": held.needed, "reason": held.reason, "why": held.why}
    return {**known, "facts": fact_summaries(held.facts)}


def _print_held(found: list[Nearest]) -> None:
    for one in found:
        for held in one.held:
            names = "; ".join(f"{plain(fact.subject)} → {plain(fact.target)}" for fact in held.facts)
            needed = f", asked for {held.needed:g}" if held.needed else ""
            cosine = "" if held.score is None else f" (cosine {held.score:.3f}{needed})"
            line = f"held at {one.position}  {names}: {held.why}{cosine}"
            console().print(line, markup=False, highlight=False, soft_wrap=True)


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
