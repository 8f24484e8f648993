"""`neuraldb lm-eval`: general ability with the facts in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.evaluation_options import MethodChoice, RunChoice, method_options, model_text, run_options
from neuraldb_faiss.cli.evaluation_tables import estimates_json, print_estimates
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, progress, say


@click.command(
    "lm-eval",
    context_settings={"ignore_unknown_options": False},
    epilog=opt.example("neuraldb lm-eval db --out run.jsonl -- --tasks sciq,arc_easy --limit 100"),
)
@opt.db
@method_options
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="FOLDER",
    help="Local data files for sciq, mmlu, arc_easy and others, where no model hub is reachable.",
)  # fmt: skip
@run_options
@opt.model
@opt.as_json
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- --tasks T1,T2 ...")
def lm_eval(
    db: Path, method: MethodChoice, data: Path | None, run: RunChoice, model: ModelChoice, as_json: bool,
    arguments: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure general ability with the facts of DB in place, by lm-evaluation-harness.

    What follows -- are the harness's own arguments: --tasks, --num_fewshot, --limit, --batch_size and so on. The task
    "paper" stands for the paper's six tasks, "general" for these with logiqa, arc_easy and winogrande.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.harness import general_ability, read_arguments, run_identity
    from neuraldb_faiss.research.evaluation.methods import base, facts_identity
    from neuraldb_faiss.runs import base_path

    with NeuralDB.open(db) as database:
        model.check_for(database)
        tasks = read_arguments(arguments, data)
        loaded, tokenizer = model.load_for(database)
        editor = method.make(database, loaded, tokenizer)
        about = {"model": model_text(database), **facts_identity(database.facts())}
        beside: dict[str, Any] = {}
        if not run.no_base and editor.name != "base":
            path = base_path(run.out, run_identity(base(), tasks, about))
            beside = general_ability(loaded, tokenizer, base(), path, tasks, about, stage=progress)
        rows = general_ability(loaded, tokenizer, editor, run.out, tasks, about, stage=progress)
    _report_tasks(editor.name, tasks.names, rows, beside, as_json, run.out)


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
            told[name] = {
                **estimates_json(found, based, apart),
                "documents": len(own),
                "harness": rows[name]["harness"],
            }
        else:
            say(f"{name}: {count(len(own), 'document')}")
            print_estimates(method, found, based, apart)
    if as_json:
        emit_json(told)
    else:
        say(f"rows in {out}")
