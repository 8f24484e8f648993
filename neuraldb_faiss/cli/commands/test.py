"""`neuraldb test`: the facts of a database, asked as people ask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import clip, console, count, emit_json, plain, progress, say
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.config import DELIVERIES

if TYPE_CHECKING:
    from neuraldb_faiss.answers.report import FactReport, Figure, Verdict

SAMPLE = 50  # facts: some minutes on two cores with a small model
_SHOWN = 3  # failing answers of a fact
_LIGHTS = {"green": "●", "yellow": "◐", "red": "○"}


@dataclass(frozen=True)
class _Asks:
    """What is asked: files of asks and of templates (None: the facts' and the package's own), and how many facts."""

    asks: Path | None
    templates: Path | None
    sample: int


@dataclass(frozen=True)
class _Run:
    """How it is asked: the delivery (None: the database's), tokens of an answer, the file of the run, and whether the
    answers themselves are printed."""

    delivery: str | None
    length: int
    out: Path | None


@click.command(epilog=opt.example("neuraldb test db --sample 20 --out answers.jsonl"))
@opt.db
@opt.bundle(
    "asks",
    _Asks,
    click.option(
        "--asks", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
        help="What to ask, as JSON lines (docs/answers.md). [default: the facts' questions and paraphrases, or their "
        "relation's, or general ones]",
    ),
    click.option(
        "--templates", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
        help="Questions and paraphrases by relation, before the package's own.",
    ),
    click.option(
        "--sample", type=click.IntRange(0), default=SAMPLE, show_default=True, metavar="N",
        help="Ask for N of the facts; 0: for all.",
    ),
)  # fmt: skip
@opt.bundle(
    "run",
    _Run,
    click.option(
        "--delivery", type=Choice(DELIVERIES), help="How facts reach the model. [default: the database's]"
    ),
    click.option(
        "--max-new-tokens", "length", type=click.IntRange(1), default=40, show_default=True, metavar="N",
        help="Maximum length of an answer.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.jsonl",
        help="File of the answers. If it exists, the same test is resumed.",
    ),
)  # fmt: skip
@opt.model
@opt.as_json
def test(db: Path, asks: _Asks, run: _Run, model: ModelChoice, as_json: bool) -> None:
    """Ask the model for the facts of DB as people do, and judge the answers.

    Each fact is asked by its own prompt, rephrased, and by questions in a chat; other questions about its subject, and
    prompts about other subjects, show what else changed. A fact is green where it is said however it is asked and its
    subject stays as it was, red where it is mostly not said, else yellow.
    """
    from neuraldb_faiss.answers.asks import cases_of, read_asks, sample
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.facts.relations import own_relations, read_relations

    relations = own_relations() if asks.templates is None else read_relations(asks.templates)
    with NeuralDB.open(db) as database:
        facts = database.facts()
        cases, left = (cases_of(facts, relations), 0) if asks.asks is None else read_asks(asks.asks, facts, relations)
        if left:
            say(f"{count(left, 'record')} of {asks.asks} left out: not in {db}")
        chosen = sample(cases, asks.sample or None)
        if len(chosen) < len(cases):
            say(f"asking for {asks.sample} of {count(len(facts), 'fact')} (--sample 0 asks for all)")
        loaded, tokenizer = model.load_for(database)
        from neuraldb_faiss.answers.deliveries import of_database
        from neuraldb_faiss.answers.report import judge, lights, summarise
        from neuraldb_faiss.answers.report_file import to_json, write_report
        from neuraldb_faiss.answers.run import Asker

        delivery = of_database(database, loaded, tokenizer, run.delivery)
        about = {"model": database.config.model.describe()}
        asker = Asker(loaded, tokenizer, length=run.length, stage=progress)
        answers = asker.answer(chosen, delivery, run.out, about)
    reports = [judge(case, answers[case.name]) for case in chosen]
    figures = summarise(reports, answers)
    told = to_json(db, delivery.name, reports, figures)
    if run.out is not None:
        written = write_report(run.out, told)
    if as_json:
        emit_json(told)
        return
    for report in reports:
        _print_fact(report)
    _print_figures(delivery.name, figures)
    by_light = lights(reports)
    click.echo(
        f"{by_light['green']} green, {by_light['yellow']} yellow, {by_light['red']} red; delivery {delivery.name}"
    )
    if run.out is not None:
        say(f"answers in {run.out}, the report in {written} (neuraldb inspect shows it)")


def _print_fact(report: FactReport) -> None:
    from rich.text import Text

    out, fact = console(), report.case.fact
    name = plain(report.case.name if fact is None else f"{fact.text} → {fact.target}")
    good = sum(verdict.problem is None for verdict in report.verdicts)
    light = report.light or ("green" if good == len(report.verdicts) else "yellow")
    head = Text.assemble((f"{_LIGHTS[light]} {light:6} ", light), name, (f"  {good}/{len(report.verdicts)}", "dim"))
    out.print(head, soft_wrap=True)
    for verdict in report.problems[:_SHOWN]:
        problem, asked = (f"           {verdict.problem}: ", "dim"), clip(_asked(verdict), 100)
        line = Text.assemble(problem, asked, (" ⇒ ", "dim"), clip(verdict.edited.strip(), 160))
        out.print(line, soft_wrap=True)
    if len(report.problems) > _SHOWN:
        out.print(Text(f"           and {len(report.problems) - _SHOWN} more", "dim"))


def _asked(verdict: Verdict) -> str:
    prompt = verdict.ask.prompt
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _print_figures(name: str, figures: list[Figure]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("measure")
    for head in ("base", name, "asks"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in figures:
        table.add_row(one.help, _cell(one.base, one), _cell(one.edited, one), str(one.of))
    console().print(table)


def _cell(value: float | None, figure: Figure) -> str:
    if value is None:
        return ""
    return f"{100 * value:.0f} %" if figure.share else f"{value:.2f}"
