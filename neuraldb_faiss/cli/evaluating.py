"""Commands that measure: eval, lm-eval, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import console, count, emit_json, progress, say
from neuraldb_faiss.research.baselines.settings import METHODS as EDITORS

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.methods import Method
    from neuraldb_faiss.research.evaluation.statistics import Estimate

    Estimates = Mapping[str, Estimate | None]

GENERATIONS = 4  # prompts a case: enough for a figure, and 24 facts take minutes on two cores

_method = opt.both(
    click.option(
        "--method", type=click.Choice(["neuraldb", "base", *EDITORS]), default="neuraldb", show_default=True,
        help="What is done with the database's facts: looked up, not used (base), or written into the weights.",
    ),
    click.option("--batch", type=click.IntRange(1), metavar="N", help="Weight editors: write N facts at a time."),
    click.option(
        "--statistics", metavar="FOLDER", help="Weight editors: the key statistics that `neuraldb statistics` made."
    ),
    click.option(
        "--set", "sets", multiple=True, metavar="NAME=VALUE",
        help="A setting of the method, as in --set lr=0.1 or --set layers=[3,4]. Repeatable.",
    ),
    opt.gate_now,
    click.option("--index", type=opt.kinds, help="neuraldb: how keys are searched."),
)  # fmt: skip
_out = click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE.jsonl",
    help="The run: a header, then one row a case. If it is there, the same run goes on.",
)  # fmt: skip


@click.command("eval")
@opt.db
@click.option(
    "--dataset", type=click.Choice(["counterfact", "zsre", "knowedit"]), required=True, help="What the cases look like."
)
@click.option("--cases", "file", required=True, metavar="FILE", help="The cases: a file, or datasets:NAME[:SPLIT].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Evaluate the first N cases; all facts stay.")
@_method
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
@_out
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
        method = _make(database, loaded, tokenizer, **how)
        source = Source(
            file, _printed(database), facts, [text for case in every for text in case.references],
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
        emit_json(_json(found, based, apart, method=method.name, cases=len(rows), facts=len(facts), run=str(out)))
        return
    _print(method.name, found, based, apart)
    say(f"{count(len(rows), 'case')}, {count(len(facts), 'fact')} in place; rows in {out}")


@click.command("lm-eval", context_settings={"ignore_unknown_options": False})
@opt.db
@_method
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="FOLDER",
    help="Local data files for sciq, mmlu, arc_easy and others, where no model hub is reachable.",
)  # fmt: skip
@click.option("--no-base", is_flag=True, help="Leave the base model's figures out.")
@_out
@opt.model
@opt.where
@opt.as_json
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- --tasks T1,T2 ...")
def lm_eval(
    db: Path, arguments: tuple[str, ...], data: Path | None, no_base: bool, out: Path, model: str | None,
    device: str | None, dtype: str | None, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Measure general ability with the facts of DB in place, by lm-evaluation-harness.

    What stands behind -- are the harness' own arguments: --tasks, --num_fewshot, --limit, --batch_size and so on.
    The tasks "paper" and "general" stand for the paper's six, and these with logiqa, arc_easy and winogrande.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.harness import general_ability, read_arguments, run_identity
    from neuraldb_faiss.research.evaluation.methods import base, facts_identity
    from neuraldb_faiss.research.evaluation.runs import base_path

    tasks = read_arguments(arguments, data)
    with NeuralDB.open(db) as database:
        loaded, tokenizer = model_of(database, model, device, dtype)
        method = _make(database, loaded, tokenizer, **how)
        about = {"model": _printed(database), **facts_identity(database.facts())}
        beside: dict[str, Any] = {}
        if not no_base and method.name != "base":
            path = base_path(out, run_identity(base(), tasks, about))
            beside = general_ability(loaded, tokenizer, base(), path, tasks, about, stage=progress)
        rows = general_ability(loaded, tokenizer, method, out, tasks, about, stage=progress)
    _report_tasks(method.name, tasks.names, rows, beside, as_json, out)


def _report_tasks(
    method: str, names: Sequence[str], rows: Mapping[str, Any], beside: Mapping[str, Any], as_json: bool, out: Path
) -> None:
    from neuraldb_faiss.research.evaluation.statistics import differences, summarise

    told: dict[str, Any] = {}
    for name in names:
        metrics = [key for key, value in rows[name].items() if isinstance(value, float)]
        own = {case: row for case, row in rows.items() if row.get("of") == name}
        base = {case: row for case, row in beside.items() if row.get("of") == name}
        found = summarise(list(own.values()), metrics)
        based = summarise(list(base.values()), metrics) if base else {}
        apart = differences(own, base, metrics) if base else {}
        if as_json:
            told[name] = {**_json(found, based, apart), "documents": len(own), "harness": rows[name]["harness"]}
        else:
            say(f"{name}: {count(len(own), 'document')}")
            _print(method, found, based, apart)
    if as_json:
        emit_json(told)
    else:
        say(f"rows in {out}")


def _make(
    db: NeuralDB, model: Any, tokenizer: Any, *, method: str, batch: int | None, statistics: str | None,
    sets: tuple[str, ...], gamma: float | None, guard: str | None, index: str | None,
) -> Method:  # fmt: skip
    """The method that the options name, after a check that the model is the database's."""
    from neuraldb_faiss.models.fingerprint import Fingerprint
    from neuraldb_faiss.research.evaluation.methods import make_method
    from neuraldb_faiss.solver.editor import check_gamma, check_model

    if gamma is not None:
        check_gamma(gamma)
    check_model(Fingerprint.from_json(db.settings["fingerprint"]), db.settings, model)
    given = {"batch": batch, "statistics": statistics, "gamma": gamma, "guard": guard, "search": index}
    given |= toml_settings(sets)
    return make_method(method, db, model, tokenizer, given)


def toml_settings(sets: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as TOML reads the value; what TOML cannot read is a text."""
    import tomllib

    found = {}
    for one in sets:
        name, equals, text = one.partition("=")
        if not equals or not name.strip():
            raise click.UsageError(f"--set {one}: write NAME=VALUE, as in --set lr=0.1")
        try:
            found[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = text.strip()
    return found


def _printed(db: NeuralDB) -> str:
    """The model as a run's header names it."""
    from neuraldb_faiss.models.fingerprint import Fingerprint

    return Fingerprint.from_json(db.settings["fingerprint"]).describe()


def _json(found: Estimates, based: Estimates, apart: Estimates, **about: Any) -> dict[str, Any]:
    """Figures under the metrics' names, shares as shares; null where not available."""

    def interval(one: Estimate | None) -> list[float] | None:
        return None if one is None else [one.low, one.high]

    return {
        **{name: None if one is None else one.value for name, one in found.items()},
        **{f"base_{name}": None if one is None else one.value for name, one in based.items()},
        "intervals": {name: interval(one) for name, one in found.items()},
        "base_intervals": {name: interval(one) for name, one in based.items()},
        "differences": {
            name: None if one is None else {"value": one.value, "interval": interval(one)}
            for name, one in apart.items()
        },
        **about,
    }  # fmt: skip


def _print(method: str, found: Estimates, based: Estimates, apart: Estimates) -> None:
    from rich import box
    from rich.table import Table

    from neuraldb_faiss.research.evaluation.statistics import shown

    def cell(name: str, one: Estimate | None) -> str:
        if one is None:
            return "n/a"
        return f"{shown(name, one.value)} [{shown(name, one.low)}, {shown(name, one.high)}]"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric")
    heads = [(method, found)] + ([("base", based), ("difference", apart)] if based else [])
    for head, _ in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name in found:
        table.add_row(name, *(cell(name, estimates[name]) for _, estimates in heads))
    console().print(table)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUNS...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), metavar="PAGE.html", help="The page."
)
@click.option("--metrics", metavar="NAMES", help="Only these, comma-separated. [default: all of the runs]")
@click.option("--title", default="Evaluation", show_default=True, help="The page's title.")
def report(runs: tuple[Path, ...], out: Path, metrics: str | None, title: str) -> None:
    """Make one self-contained page of RUNS: tables with 95 % intervals, paired differences, plots."""
    from neuraldb_faiss.research.evaluation.report import write_report

    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    comparisons = write_report(runs, out, names, title=title)
    say(f"{count(len(runs), 'run')} in {count(len(comparisons), 'comparison')}: {out}")
