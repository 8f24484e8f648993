"""Options that mean the same everywhere, declared once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.errors import SearchError
from neuraldb_faiss.facts import FORMATS
from neuraldb_faiss.index import registry as index_registry

PAPER: dict[str, Any] = {"keys": "paper", "guard": "none", "gamma": 0.65, "max_steps": 0}


def both(*decorators: Any) -> Any:
    """Several decorators as one, the first one's option first in the help text."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


class Kinds(click.Choice):
    """Names of a registry, which is read when they are needed: other packages may add some."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self._names = names
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self._names())

    @choices.setter
    def choices(self, value: tuple[str, ...]) -> None: ...


db = click.argument("db", type=click.Path(path_type=Path))
fact_files = click.argument("sources", metavar="FACTS...", nargs=-1, required=True)

model = click.option(
    "--model", metavar="M", help="Model folder, or hub name. [default: the one recorded in the database]"
)
model_required = click.option("--model", metavar="M", required=True, help="Model folder, or a name on the model hub.")
device = click.option("--device", help="cpu, cuda, cuda:1, or auto to spread the layers. [default: the GPU if any]")
dtype = click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Type of the model's weights. [default: float32 on a CPU, the stored one elsewhere]",
)
where = both(device, dtype)
allowed_hosts = click.option(
    "--allowed-host", "allowed_hosts", metavar="NAME", multiple=True,
    help="Another name, or address, by which clients ask this server (header Host), and whose pages may ask it."
    " Several: repeat it; '*' for all. [default: localhost, loopback addresses and --host]",
)  # fmt: skip
layer = click.option("--layer", type=int, help="Layer to edit, from 0. [default: the known one of the model's shape]")
gamma = click.option(
    "--gamma",
    type=float,
    help="The gate: the cosine above which a fact fires. [default: 0.45 with a guard, 0.65 without]",
)
guards = click.Choice(["subject", "whole-words", "none"])
guard = click.option(
    "--guard",
    type=guards,
    help="subject: a fact fires only where the text names its subject; whole-words: and where no word goes on there, in"
    " a prompt; none: by the cosine alone. [default: subject]",
)
gamma_now = click.option("--gamma", type=float, help="Another gate than the database's, this once.")
gate_now = both(
    gamma_now,
    click.option("--guard", type=guards, help="Another guard than the database's, this once."),
)
kinds = Kinds(index_registry.names)
index = click.option("--index", type=kinds, default="auto", show_default=True, help="How keys are searched.")
index_required = click.option("--index", type=kinds, required=True, help="How keys are searched from now on.")
lists = both(
    click.option("--nlist", type=click.IntRange(1), help="ivf: number of lists. [default: by the number of keys]"),
    click.option("--nprobe", type=click.IntRange(1), help="ivf: lists searched. [default: by the number of lists]"),
)
keys = click.option(
    "--keys",
    type=click.Choice(["two", "paper"]),
    help="Keys a fact: two (raw, and mean behind prefixes), or the paper's one average. [default: two]",
)
preset = click.option(
    "--preset",
    type=click.Choice(["paper"]),
    help="paper: the paper to the letter (--keys paper --guard none --gamma 0.65 --max-steps 0).",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
wait = click.option(
    "--wait",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another writer.",
)
reading = both(
    click.option(
        "--format",
        "format_",
        type=click.Choice(list(FORMATS)),
        default="auto",
        show_default=True,
        help="What the records look like.",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Take the first N good facts."),
    click.option(
        "--on-conflict",
        type=click.Choice(["error", "first", "last"]),
        default="error",
        show_default=True,
        help="Which target counts where one subject and prompt has several.",
    ),
    click.option("--skip-bad", is_flag=True, help="Leave bad records out and count them, instead of stopping."),
)
into_or_out = both(
    click.option("--out", type=click.Path(path_type=Path), metavar="DB", help="A new folder for the database."),
    click.option("--into", type=click.Path(path_type=Path), metavar="DB", help="Take the facts into this one instead."),
    click.option(
        "--on-conflict",
        type=click.Choice(["error", "first", "last"]),
        default="error",
        show_default=True,
        help="A fact that comes with several targets: refuse, or take the first or the last (--into counts as first).",
    ),
    click.option("--gamma", type=float, help="The gate from now on; needed where the gates differ."),
    click.option("--model", metavar="M", help="Solve facts that come to share a key at once. [default: they wait]"),
)
drop_failed = click.option(
    "--drop-failed", is_flag=True, help="Leave out facts that the model still does not say after solving."
)


def with_preset(preset: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """keys, guard, gamma and max_steps as the preset and the single options say; a contradiction is wrong usage."""
    if preset is None:
        return {name: given[name] for name in PAPER}
    for name, meant in PAPER.items():
        if given[name] is not None and given[name] != meant:
            option = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"--preset paper means {option} {meant}, not {given[name]}: drop one of them")
    return PAPER


def index_settings(kind: str, nlist: int | None, nprobe: int | None) -> dict[str, Any]:
    """The setting `index` of a database; auto is flat, the kind that is exact."""
    options = {name: value for name, value in (("nlist", nlist), ("nprobe", nprobe)) if value}
    try:
        return {"kind": index_registry.check_kind(kind, options), **options}
    except SearchError as error:
        raise click.UsageError(str(error)) from None
