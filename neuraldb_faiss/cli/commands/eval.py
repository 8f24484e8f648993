"""`neuraldb eval`: the effect of a database's facts on CounterFact, zsRE or KnowEdit cases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.evaluation_options import MethodChoice, RunChoice, method_options, model_text, run_options
from neuraldb_faiss.cli.evaluation_tables import estimates_json, print_estimates
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, progress, say
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.research.datasets.registry import DATASETS

GENERATIONS = 4  # prompts a case: enough for a figure, and 24 facts take minutes on two cores


@dataclass(frozen=True)
class _Cases:
    """The cases: their file and dataset, how many of them, and a file of reference texts."""

    dataset: str
    file: str
    limit: int | None
    references: Path | None


@dataclass(frozen=True)
class _Measures:
    """What is measured: metrics (None: all), generation prompts of each case, quirks, and the seed of texts."""

    metrics: str | None
    generations: int
    quirks: tuple[str, ...]
    seed: int


@click.command("eval", epilog=opt.example("neuraldb eval db --dataset counterfact --cases cases.json --out run.jsonl"))
@opt.db
@opt.bundle(
    "cases",
    _Cases,
    click.option(
        "--dataset", type=Choice(list(DATASETS.kinds)), required=True, help="Format of the cases."
    ),
    click.option("--cases", "file", required=True, metavar="FILE", help="The cases: a file, or datasets:NAME[:SPLIT]."),
    click.option(
        "--limit", type=click.IntRange(1), metavar="N", help="Evaluate the first N cases; all facts stay in place."
    ),
    click.option(
        "--references", type=click.Path(path_type=Path), metavar="FILE",
        help="Texts about objects, for consistency. [default: the case's attribute prompts with the target]",
    ),
)  # fmt: skip
@method_options
@opt.bundle(
    "measures",
    _Measures,
    click.option("--metrics", metavar="NAMES", help="Only these, comma-separated. [default: all of the dataset]"),
    click.option(
        "--generations", type=click.IntRange(0), default=GENERATIONS, show_default=True, metavar="N",
        help="Generation prompts of each case for fluency and consistency; 0 for none. CounterFact has ten.",
    ),
    click.option(
        "--quirk", "quirks", multiple=True, metavar="NAME", help="Measure as another implementation does. Repeatable."
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the generated texts."),
)  # fmt: skip
@run_options
@opt.model
@opt.as_json
def evaluate(
    db: Path, cases: _Cases, method: MethodChoice, measures: _Measures, run: RunChoice, model: ModelChoice,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure what the facts of DB do to its model, on CounterFact, zsRE or KnowEdit cases.

    All facts of DB are in place whichever cases are evaluated; cases whose fact is not in DB are left out. The base
    model is measured too, once for all runs in the folder of --out.
    """
    from neuraldb_faiss.database import NeuralDB

    NeuralDB.open(db).close()  # wrong paths are told before torch is imported
    from neuraldb_faiss.research.datasets.cases import in_place, read_cases

    every = read_cases(cases.file, cases.dataset, references=cases.references)
    from neuraldb_faiss.research.evaluation.evaluate import BASE, Settings, Source
    from neuraldb_faiss.research.evaluation.evaluate import evaluate as measure
    from neuraldb_faiss.research.evaluation.statistics import differences, summarise

    names = None if measures.metrics is None else tuple(name.strip() for name in measures.metrics.split(","))
    settings = Settings(cases.dataset, names, measures.generations, seed=measures.seed, quirks=measures.quirks)
    with NeuralDB.open(db) as database:
        facts = database.facts()
        known = in_place(every, facts)
        chosen = known[: cases.limit]
        if chosen and len(known) < len(every):
            say(f"{count(len(every) - len(known), 'case')} of {cases.file} left out: not in {db}")
        loaded, tokenizer = model.load_for(database)
        editor = method.make(database, loaded, tokenizer)
        source = Source(
            cases.file, model_text(database), facts, [text for case in every for text in case.references],
            None if cases.references is None else str(cases.references),
        )  # fmt: skip
        rows = measure(
            loaded, tokenizer, chosen, editor, run.out, settings, source, with_base=not run.no_base,
            stage=progress,
        )  # fmt: skip
    found = summarise(rows, settings.names)
    based = summarise(rows, settings.names, prefix=BASE) if any(k.startswith(BASE) for k in rows[0]) else {}
    by_case = {row["case"]: row for row in rows}
    apart = differences(by_case, by_case, settings.names, right_prefix=BASE) if based else {}
    if as_json:
        emit_json(
            estimates_json(found, based, apart, method=editor.name, cases=len(rows), facts=len(facts), run=str(run.out))
        )
        return
    print_estimates(editor.name, found, based, apart)
    say(f"{count(len(rows), 'case')}, {count(len(facts), 'fact')} in place; rows in {run.out}")
