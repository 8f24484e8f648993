"""`neuraldb report`: a page about evaluation runs and folders of results."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, say
from neuraldb_faiss.errors import EvaluationError


@click.command(
    epilog=opt.example("neuraldb report runs/*.jsonl --out page.html", "neuraldb report docs/results/table1")
)
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULTS...")
@click.option(
    "--out",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PAGE.html",
    help="The page.",
)
@click.option("--metrics", metavar="NAMES", help="Only these of the runs, comma-separated. [default: all]")
@click.option("--title", default="Evaluation", show_default=True, help="Title of the page.")
@click.option(
    "--plots",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Also write each plot there, as NAME.svg.",
)
def report(results: tuple[Path, ...], out: Path, metrics: str | None, title: str, plots: Path | None) -> None:
    """Make a self-contained page of RESULTS: tables with 95 % intervals, paired differences, plots.

    RESULTS are runs, as `neuraldb eval` writes them, files of rows, or folders of an experiment with either.
    """
    for path in results:
        if not path.exists():
            raise EvaluationError(f"there is no run {path}: check the path")
    from neuraldb_faiss.research.evaluation.report import write_plots, write_report
    from neuraldb_faiss.research.experiments.registry import drawn

    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    made = write_report(results, out, names, title=title, draw=drawn)
    if plots is not None:
        say(f"{count(len(write_plots(made, plots)), 'plot')} in {plots}")
    about = [f"{count(made.runs, 'run')} in {count(len(made.comparisons), 'comparison')}"] if made.runs else []
    about += [f"{count(len(made.files), 'file')} of results"] if made.files else []
    say(f"{', '.join(about)}: {out}")
