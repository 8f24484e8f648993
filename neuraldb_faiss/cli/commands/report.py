"""`neuraldb report`: a page that compares evaluation runs."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, say
from neuraldb_faiss.errors import EvaluationError


@click.command(epilog=opt.example("neuraldb report runs/*.jsonl --out page.html"))
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="PAGE.html", help="The page."
)
@click.option("--metrics", metavar="NAMES", help="Only these, comma-separated. [default: all of the runs]")
@click.option("--title", default="Evaluation", show_default=True, help="Title of the page.")
def report(runs: tuple[Path, ...], out: Path, metrics: str | None, title: str) -> None:
    """Make a self-contained page of RUNS: tables with 95 % intervals, paired differences, plots."""
    for run in runs:
        if not run.exists():
            raise EvaluationError(f"there is no run {run}: check the path")
    from neuraldb_faiss.research.evaluation.report import write_report

    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    comparisons = write_report(runs, out, names, title=title)
    say(f"{count(len(runs), 'run')} in {count(len(comparisons), 'comparison')}: {out}")
