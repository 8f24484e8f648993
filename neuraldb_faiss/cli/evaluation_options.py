"""Options and editing method shared by eval and lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.setting_values import parse_settings
from neuraldb_faiss.research.baselines.settings import METHODS as EDITORS

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.methods import Method

method_options = opt.both(
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


run_file = click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="FILE.jsonl",
    help="The run: a header, then one row a case. If it is there, the same run goes on.",
)  # fmt: skip


def method_of(
    db: NeuralDB, model: Any, tokenizer: Any, *, method: str, batch: int | None, statistics: str | None,
    sets: tuple[str, ...], gamma: float | None, guard: str | None, index: str | None,
) -> Method:  # fmt: skip
    """The method that the options name, after a check that the model is the database's."""
    from neuraldb_faiss.config import check_gamma
    from neuraldb_faiss.models.identity import check_model
    from neuraldb_faiss.research.evaluation.methods import make_method

    if gamma is not None:
        check_gamma(gamma)
    check_model(db.config, model)
    given = {"batch": batch, "statistics": statistics, "gamma": gamma, "guard": guard, "search": index}
    given |= parse_settings(sets)
    return make_method(method, db, model, tokenizer, given)


def model_text(db: NeuralDB) -> str:
    """The model as a run's header names it."""
    return db.config.model.describe()
