"""Commands that run a model with a database attached: generate, explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import console, count, emit_json, plain, say

if TYPE_CHECKING:
    from neuraldb_faiss.inference.ask import Answer, Fired
    from neuraldb_faiss.inference.explain import Nearest
    from neuraldb_faiss.store import StoredFact


@click.command()
@opt.db
@click.argument("prompt")
@opt.model
@click.option("--compare", is_flag=True, help="Also print what the model says without the database.")
@click.option("--chat", is_flag=True, help="Wrap the prompt in the model's chat template.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    metavar="N",
    help="Length of the answer, at most.",
)
@click.option("--explain", "mark", is_flag=True, help="Mark in the text where a fact fired.")
@opt.gate_now
@opt.index
@opt.where
@opt.as_json
def generate(
    db: Path,
    prompt: str,
    model: str | None,
    compare: bool,
    chat: bool,
    max_new_tokens: int,
    mark: bool,
    gamma: float | None,
    guard: str | None,
    index: str,
    device: str | None,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Continue PROMPT greedily with a database attached, and list the facts that fired."""
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        from neuraldb_faiss.inference.ask import ask

        with database.attach(loaded, tokenizer, gamma=gamma, guard=guard, search=index) as handle:
            answer = ask(
                database,
                handle,
                loaded,
                tokenizer,
                prompt,
                compare=compare,
                chat=chat,
                max_new_tokens=max_new_tokens,
            )
    if as_json:
        emit_json(_answer_json(answer))
    else:
        _print_answer(answer, mark)


def _answer_json(answer: Answer) -> dict[str, Any]:
    base = {} if answer.base is None else {"base": answer.base}
    fired = [
        {
            "entry": one.entry,
            "positions": list(one.positions),
            "score": round(one.score, 6),
            "facts": _named(one.facts),
        }
        for one in answer.fired
    ]
    return {
        "prompt": answer.prompt,
        **base,
        "edited": answer.edited,
        "fired": fired,
        "tokens": list(answer.tokens),
    }


def _named(facts: tuple[StoredFact, ...]) -> list[dict[str, str]]:
    return [{"id": f.id, "subject": f.subject, "prompt": f.prompt, "target": f.target} for f in facts]


def _print_answer(answer: Answer, mark: bool) -> None:
    from rich.text import Text

    out = console()
    if answer.base is not None:
        out.print(
            Text.assemble(("base    ", "dim"), f"{_shown(answer.prompt)}{_shown(answer.base)}"),
            soft_wrap=True,
        )
    label = ("edited  ", "dim") if answer.base is not None else ""
    text = _marked(answer) if mark else Text.assemble(_shown(answer.prompt), (_shown(answer.edited), "bold"))
    out.print(Text.assemble(label, text), soft_wrap=True)
    for one in answer.fired:
        out.print(Text.assemble(("fired   ", "dim"), _fired_line(one)), soft_wrap=True)
    if not answer.fired:
        say("no fact fired: the answer is the model's own")


def _shown(text: str) -> str:
    return "\n".join(plain(line) for line in text.split("\n"))


def _marked(answer: Answer) -> Any:
    """Prompt and answer, with [fact cosine] behind every token where a fact fired."""
    from rich.text import Text

    at = {position: one for one in answer.fired for position in one.positions}
    text = Text()
    for position, token in enumerate(answer.tokens):
        if position in at:
            one = at[position]
            text.append(_shown(token), "bold green")
            text.append(f"[→ {_targets(one.facts)} {one.score:.2f}]", "green")
        else:
            text.append(_shown(token))
    return text


def _targets(facts: tuple[StoredFact, ...]) -> str:
    return " | ".join(plain(fact.target) for fact in facts)


def _fired_line(one: Fired) -> str:
    where = ", ".join(map(str, one.positions))
    facts = "; ".join(f"{plain(fact.subject)}: {plain(fact.template)} → {plain(fact.target)}" for fact in one.facts)
    return f"{facts} (cosine {one.score:.3f}, at token {where})"


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
                        "facts": _named(one.facts),
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
