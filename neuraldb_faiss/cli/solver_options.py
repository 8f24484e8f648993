"""Options of build and rebuild that say how facts are solved."""

from __future__ import annotations

from typing import Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.param_types import Choice, Kinds
from neuraldb_faiss.cli.sections import GATE, INDEX, MODEL, SOLVING, section
from neuraldb_faiss.config import OPTIMIZERS
from neuraldb_faiss.solver.objectives import registry as objectives

PAPER: dict[str, Any] = {
    "keys": "paper", "guard": "none", "gamma": 0.65, "max_steps": 0, "end_factor": 0.0, "delivery": "residual",
    "optimizer": "adam",
}  # fmt: skip


def solver_settings(**given: Any) -> dict[str, Any]:
    """The options as `neuraldb_faiss.build` takes them, without those left to their defaults.

    Raises:
        UsageError: options contradict each other.
        NeuralDBError: a value is out of range; nothing slow has been done by then.
    """
    from neuraldb_faiss.config import check_kl_prompts

    given.update(_with_preset(given.pop("preset"), given))
    given["index"] = opt.index_settings(
        given["index"], given.pop("nlist"), given.pop("nprobe"), given.pop("index_options")
    )
    given = {name: value for name, value in given.items() if value is not None}
    check_kl_prompts(given.get("kl_prompts", ()))
    return given


def _with_preset(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The options of PAPER as the preset and they themselves say; a contradiction is wrong usage."""
    if preset is None:
        return {name: given[name] for name in PAPER}
    for name, meant in PAPER.items():
        if given[name] is not None and given[name] != meant:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--preset paper means {option} {meant}, not {given[name]}: drop one of them")
    return PAPER


_SOLVING = (
    click.option("--layer", type=int, help="Layer to edit, from 0. [default: the known one of the model's shape]"),
    click.option(
        "--residual",
        type=Kinds(objectives.names),
        help="Objective that residuals are optimised for. answer: for where the answer to a prompt begins, so that a"
        " fact is said in other words and in chats too; its guard is answer. none makes keys only, to measure gates and"
        " lookups. [default: memit]",
    ),
    click.option(
        "--keys",
        type=Choice(["two", "paper"]),
        help="Keys of a fact: two (of the bare prompt, and a mean over prefixed prompts), or the paper's one average."
        " [default: two]",
    ),
    click.option(
        "--preset",
        type=Choice(["paper"]),
        help="paper: the paper to the letter (--keys paper --guard none --gamma 0.65 --max-steps 0"
        " --end-factor 0 --delivery residual --optimizer adam).",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the context prefixes."),
    click.option(
        "--optimizer",
        type=Choice(OPTIMIZERS),
        help="sampled: normalised steps, each over the raw prompt and one context in turn, some five times as fast."
        " adam: the paper's, over all contexts at every step. [default: adam for --residual pmet, else sampled]",
    ),
    click.option("--steps", type=click.IntRange(1), help="Optimiser steps for each fact. [default: the model's]"),
    click.option(
        "--max-steps",
        type=click.IntRange(0),
        help="Maximum steps for a fact that the model does not say before; 0: no more than --steps."
        " [default: three times --steps]",
    ),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Learning rate. [default: the model's]"),
    click.option("--weight-decay", type=click.FloatRange(0), help="Weight of the penalty on the residual's norm."),
    click.option(
        "--clamp", type=click.FloatRange(0, min_open=True), help="Maximum residual norm relative to the layer output."
    ),
    click.option(
        "--kl-factor",
        type=click.FloatRange(0),
        help="Weight of the KL divergence that keeps what the model says the subject is.",
    ),
    click.option(
        "--kl-prompt",
        "kl_prompts",
        multiple=True,
        metavar="TEMPLATE",
        help='Keep also the continuation of this prompt about another relation, as in "{} was born in". Repeatable.',
    ),
    click.option(
        "--end-factor",
        type=click.FloatRange(0),
        help="Weight of the term that ends the target's last word (Anna Berg, not Anna Bergman). [default: 0.25]",
    ),
    click.option("--stop-loss", type=click.FloatRange(0), help="Stop optimising a fact at this loss."),
)
solver_options = opt.bundle(
    "settings",
    solver_settings,
    section(MODEL, opt.ffn_module),
    section(SOLVING, *_SOLVING),
    section(GATE, opt.guard, opt.gamma, opt.delivery),
    opt.drop_failed,
    section(INDEX, opt.index, opt.lists),
)
