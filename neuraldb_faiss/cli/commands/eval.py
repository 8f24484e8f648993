"""`neuraldb eval`: the effect of a database's facts on CounterFact, zsRE or KnowEdit cases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.evaluation_options import method_of, method_options, model_text, run_file
from neuraldb_faiss.cli.evaluation_tables import estimates_json, print_estimates
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import count, emit_json, progress, say

GENERATIONS = 4  # prompts a case: enough for a figure, and 24 facts take minutes on two cores


@click.command("eval")
@opt.db
@click.option(
    "--dataset", type=click.Choice(["counterfact", "zsre", "knowedit"]), required=True, help="What the cases look like."
)
@click.option("--cases", "file", required=True, metavar="FILE", help="The cases: a file, or datasets:NAME[:SPLIT].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Evaluate the first N cases; all facts stay.")
@method_options
@click.option("--metrics", metavar="NAMES", help="Only these, comma-separated. [default: all of the dataset]")
@click.option(
    "--generations", type=click.IntRange(0), default=GENERATIONS, show_default=True, metavar="N",
    help="Generation prompts a case for fluency and consistency; 0 for none. CounterFact has ten a case.",
)  # fmt: skip
@click.option(
    "--references", type=click.Path(path_type=Path), metavar="FILE",
    help="Texts about objects, for consistency. [default: the case's attribute prompts with the target]",
)  # fmt: skip
@click.option("--quirk", "quirks", multiple=True, metavar="NAME", help="Measure as another code does. Repeatable.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the generated texts.")
@click.option("--no-base", is_flag=True, help="Leave the base model's figures out.")
@run_file
@opt.model
@opt.where
@opt.as_json
def evaluate(
    db: Path, dataset: str, file: str, limit: int | None, metrics: str | None, generations: int,
    references: Path | None, quirks: tuple[str, ...], seed: int, no_base: bool, out: Path, model: str | None,
    device: str | None, dtype: str | None, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Measure what the facts of DB do to its model, on CounterFact, zsRE or KnowEdit cases.

    All facts of DB are in place whichever cases are evaluated; cases whose fact is not in DB are left out. The base
    model is measured beside, once for all runs in the folder of --out.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.cases import in_place, read_cases
    from neuraldb_faiss.research.evaluation.evaluate import BASE, Settings, Source
    from neuraldb_faiss.research.evaluation.evaluate import evaluate as run
    from neuraldb_faiss.research.evaluation.statistics import differences, summarise

    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    settings = Settings(dataset, names, generations, seed=seed, quirks=quirks)
    every = read_cases(file, dataset, references=references)
    with NeuralDB.open(db) as database:
        facts = database.facts()
        known = in_place(every, facts)
        cases = known[:limit]
        if cases and len(known) < len(every):
            say(f"{count(len(every) - len(known), 'case')} of {file} left out: not in {db}")
        loaded, tokenizer = model_of(database, model, device, dtype)
        method = method_of(database, loaded, tokenizer, **how)
        source = Source(
            file, model_text(database), facts, [text for case in every for text in case.references],
            None if references is None else str(references),
        )  # fmt: skip
        rows = run(
            loaded, tokenizer, cases, method, out, settings, source, with_base=not no_base,
            stage=progress,
        )  # fmt: skip
    found = summarise(rows, settings.names)
    based = summarise(rows, settings.names, prefix=BASE) if any(k.startswith(BASE) for k in rows[0]) else {}
    by_case = {row["case"]: row for row in rows}
    apart = differences(by_case, by_case, settings.names, right_prefix=BASE) if based else {}
    if as_json:
        emit_json(
            estimates_json(found, based, apart, method=method.name, cases=len(rows), facts=len(facts), run=str(out))
        )
        return
    print_estimates(method.name, found, based, apart)
    say(f"{count(len(rows), 'case')}, {count(len(facts), 'fact')} in place; rows in {out}")
