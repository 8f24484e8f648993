"""Options of the commands that solve facts into a new database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.solver.objectives import registry as objectives

solver_options = opt.both(
    opt.layer,
    click.option(
        "--residual",
        type=opt.Kinds(objectives.names),
        help="Whose objective solves residuals; none makes keys only, to measure gates and lookups. [default: memit]",
    ),
    opt.keys,
    opt.preset,
    opt.guard,
    opt.gamma,
    click.option(
        "--ffn-module",
        metavar="PATTERN",
        help='The FFN\'s down-projection, as in "model.layers.{}.mlp.down_proj", where it is not found.',
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the context prefixes."),
    click.option("--steps", type=click.IntRange(1), help="Steps of the optimiser a fact. [default: the model's]"),
    click.option(
        "--max-steps",
        type=click.IntRange(0),
        help="Steps at most, for facts that the model does not say before. [default: three times as many]",
    ),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate. [default: the model's]"),
    click.option("--weight-decay", type=click.FloatRange(0), help="Factor on the residual's length."),
    click.option(
        "--clamp", type=click.FloatRange(0, min_open=True), help="Longest residual, in lengths of the output."
    ),
    click.option("--kl-factor", type=click.FloatRange(0), help="Factor on the change of what the subject is."),
    click.option(
        "--kl-prompt",
        "kl_prompts",
        multiple=True,
        metavar="TEMPLATE",
        help='Keep also what follows this prompt about another relation, as in "{} was born in". Repeatable.',
    ),
    click.option("--chat", is_flag=True, default=None, help="Solve also for the prompt asked in the chat template."),
    click.option("--stop-loss", type=click.FloatRange(0), help="Loss at which a fact is done."),
    opt.drop_failed,
    opt.index,
    opt.lists,
    opt.where,
    opt.as_json,
)


new_database = click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DB", help="Folder of the new database."
)


def checked_settings(making: dict[str, Any]) -> dict[str, Any]:
    """The options as `making.build` takes them, without those left to their defaults.

    Wrong ones are refused here, before anything slow.
    """
    from neuraldb_faiss.config import check_gamma

    making.update(opt.with_preset(making.pop("preset"), making))
    making["index"] = opt.index_settings(making["index"], making.pop("nlist"), making.pop("nprobe"))
    given = {name: value for name, value in making.items() if value is not None}
    if "gamma" in given:
        check_gamma(given["gamma"])
    return given
