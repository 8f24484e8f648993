"""Options of eval and lm-eval: the editing method, and the file of the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.cli.setting_values import parse_settings
from neuraldb_faiss.research.evaluation.methods import METHODS

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.research.evaluation.methods import Method


@dataclass(frozen=True)
class MethodChoice:
    """An editing method by name, with its settings; None leaves a setting to its default."""

    method: str
    batch: int | None
    statistics: str | None
    sets: tuple[str, ...]
    gamma: float | None
    guard: str | None
    index: str | None

    def make(self, db: NeuralDB, model: Any, tokenizer: Any) -> Method:
        """The method, after a check that the model is the database's."""
        from neuraldb_faiss.models.identity import check_model
        from neuraldb_faiss.research.evaluation.methods import make_method

        check_model(db.config, model)
        given = {
            "batch": self.batch, "statistics": self.statistics, "gamma": self.gamma, "guard": self.guard,
            "search": self.index,
        }  # fmt: skip
        given |= parse_settings(self.sets)
        return make_method(self.method, db, model, tokenizer, given)


@dataclass(frozen=True)
class RunChoice:
    """The run's file, and whether the base model's figures are left out."""

    out: Path
    no_base: bool


method_options = opt.bundle(
    "method",
    MethodChoice,
    click.option(
        "--method", type=Choice(METHODS), default="neuraldb", show_default=True,
        help="neuraldb looks the database's facts up; base does not use them; the others edit the weights with them.",
    ),
    click.option("--batch", type=click.IntRange(1), metavar="N", help="Weight editors: edit N facts at a time."),
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
run_options = opt.bundle(
    "run",
    RunChoice,
    click.option("--no-base", is_flag=True, help="Do not measure the base model beside."),
    click.option(
        "--out", required=True, type=click.Path(path_type=Path), metavar="FILE.jsonl",
        help="File of the run: a header, then one row for each case. If it exists, the same run is resumed.",
    ),
)  # fmt: skip


def model_text(db: NeuralDB) -> str:
    """The model as a run's header names it."""
    return db.config.model.describe()
