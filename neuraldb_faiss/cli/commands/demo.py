"""`neuraldb demo`: edits of a small model shown before, after, and in a new process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import clip, console, count, duration, plain, progress, say

if TYPE_CHECKING:
    from rich.console import Console

    from neuraldb_faiss.cli.demonstration import Check, Shown

WIDTH = 98
_path = click.Path(path_type=Path)


@click.command(epilog=opt.example("neuraldb demo"))
@click.option(
    "--out",
    type=_path,
    default="indexes/demo",
    show_default=True,
    metavar="DB",
    help="Folder of the demonstration's database.",
)
@click.option(
    "--model-dir",
    type=_path,
    default="models/SmolLM2-135M-Instruct",
    show_default=True,
    metavar="FOLDER",
    help="The demonstration's model; downloaded and converted if it is missing.",
)
@click.option(
    "--facts",
    "facts_file",
    type=_path,
    default="examples/facts.jsonl",
    show_default=True,
    metavar="FILE",
    help="The facts to edit in.",
)
@click.option("--fresh", is_flag=True, help="Delete the demonstration's database first, whatever was done to it.")
@opt.where
def demo(out: Path, model_dir: Path, facts_file: Path, fresh: bool, device: str | None, dtype: str | None) -> None:
    """Edit a small real model and show its answers before and after, then again in a new process."""
    if not facts_file.is_file():
        raise click.ClickException(
            f"no facts at {facts_file}: run this in the checkout's folder, or name a file (--facts)"
        )
    from neuraldb_faiss.cli import demonstration as logic
    from neuraldb_faiss.cli.loading import load_model
    from neuraldb_faiss.models import get_demo_model

    started = time.monotonic()
    model, tokenizer = load_model(str(get_demo_model(model_dir)), device, dtype)
    with progress("building") as report:
        db, was_there = logic.demo_database(facts_file, out, model, tokenizer, fresh=fresh, report=report)
    with db:
        printer = console()
        facts = db.facts()
        how = "was there already" if was_there else f"built in {duration(time.monotonic() - started)}"
        info = db.info()
        click.echo(f"{out}: {count(len(facts), 'fact')} in {count(info['entries'], 'entry', 'entries')}, {how}")
        click.echo(
            f"model: {model_dir}, edited at layer {info['layer']}; gate: cosine above {info['gamma']:g},"
            f" guard: {info['guard']}\n"
        )
        shown = []
        for number, one in enumerate(logic.show(db, model, tokenizer, logic.selection(facts)), start=1):
            shown.append(one)
            _print_edit(printer, number, one)
    _print_sum(printer, shown)
    click.echo("\nNow in new processes, from what is on the disk:\n")
    checks = []
    for check in logic.in_new_process(out, model_dir, facts, shown[:2]):
        checks.append(check)
        _print_check(printer, check)
    if not all(check.holds for check in checks):
        raise click.ClickException("something was lost between the two processes (see above)")
    click.echo(f'\nNothing was lost. Ask it yourself: neuraldb generate {out} "..." --compare')
    say(f"done in {duration(time.monotonic() - started)}")


def _print_edit(printer: Console, number: int, one: Shown) -> None:
    _row(printer, f"{number:2}", one.fact.text, "bold")
    _row(printer, "   base", one.own.base or "", "dim")
    _row(printer, "   edited", one.own.edited, "green" if one.edited else "red")
    if one.paraphrase is not None:
        style = "green" if one.paraphrase_edited else "yellow"
        _row(printer, "   rephrased", one.paraphrase.edited, style, before=one.paraphrase.prompt)
    if one.neighbour is not None:
        note = "  (unchanged)" if one.neighbour_same else f"  (CHANGED from:{one.neighbour.base})"
        style = "" if one.neighbour_same else "red"
        _row(printer, "   neighbour", one.neighbour.edited, style, note, before=one.neighbour.prompt)
    for fired in one.own.fired:
        facts = " and ".join(f"{fact.subject} → {fact.target}" for fact in fired.facts)
        where = ", ".join(plain(one.own.tokens[at].strip()) for at in fired.positions[:3])
        _row(printer, "   fired", facts, "cyan", f"  (cosine {fired.score:.3f} at “{where}”)")
    if not one.own.fired:
        _row(printer, "   fired", "nothing", "red")
    printer.print()


def _row(printer: Console, label: str, text: str, style: str, note: str = "", before: str = "") -> None:
    """One line: what does not fit is cut off the beginning of `before`, then off the text's end."""
    from rich.text import Text

    head = label.ljust(14) if label.strip() and not label.strip().isdigit() else f"{label} "
    note = clip(note, WIDTH // 2)
    room = WIDTH - len(head) - len(note)
    text, before = clip(" ".join(text.split()), room), plain(before)
    if before:
        room -= len(text) + 3
        before = f"{before if len(before) <= room else '…' + before[len(before) - max(room, 1) + 1 :]} … "
    printer.print(Text.assemble((head, "dim"), before, (text, style), (note, "dim")), soft_wrap=True)


def _print_sum(printer: Console, shown: list[Shown]) -> None:
    rephrased = [one for one in shown if one.paraphrase is not None]
    neighbours = [one for one in shown if one.neighbour is not None]
    for done, of, what in (
        (sum(one.edited for one in shown), len(shown), "edits give the new answer"),
        (sum(one.paraphrase_edited for one in rephrased), len(rephrased), "rephrased prompts give it too"),
        (
            sum(one.neighbour_same for one in neighbours),
            len(neighbours),
            "neighbours are unchanged, to the token",
        ),
    ):
        printer.print(f"{done:2} of {of} {what}", style="green" if done == of else "yellow")


def _print_check(printer: Console, check: Check) -> None:
    from rich.text import Text

    printer.print(Text(clip(f"$ {check.command}", WIDTH), "bold"), soft_wrap=True)
    mark = "" if check.holds else "  (NOT as before)"
    text = clip(" ".join(check.result.split()), WIDTH - 2 - len(mark))
    printer.print(Text(f"  {text}{mark}", "green" if check.holds else "red"), soft_wrap=True)
