"""Options that mean the same in every command, each declared once.

A command takes a group of options as one argument: `bundle` makes a typed object of their values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.cli.loading import FactFiles, ModelChoice
from neuraldb_faiss.cli.param_types import Choice, Kinds
from neuraldb_faiss.cli.sections import FACTS, MODEL, OUTPUT, both, section
from neuraldb_faiss.config import DELIVERIES, check_gamma
from neuraldb_faiss.errors import SearchError, StoreError
from neuraldb_faiss.facts import FORMATS, Fact
from neuraldb_faiss.guard import registry as guard_registry
from neuraldb_faiss.index import registry as index_registry


def bundle(name: str, make: Callable[..., Any], *options: Any) -> Any:
    """Options whose values reach the command as the one argument `name`.

    Args:
        name: the command function's parameter.
        make: called with every option's value by its parameter name; a dataclass, or a function that checks them.
        options: the decorators of click, the first one's option first in the help text.
    """
    declared = both(*options)
    names = [param.name for param in declared(lambda: None).__click_params__]

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            values[name] = make(**{one: values.pop(one) for one in names})
            return function(*args, **values)

        return declared(call)

    return decorate


def example(*commands: str) -> str:
    """The end of a help text: what a user might type, each line as it is."""
    lines = ["\b", "Example:" if len(commands) == 1 else "Examples:", *(f"  {line}" for line in commands)]
    return "\n".join(lines)


@dataclass(frozen=True)
class GateChoice:
    """Gate, guard and index that replace the database's for one call; None and "auto" keep them."""

    gamma: float | None = None
    guard: str | None = None
    index: str = "auto"


@dataclass(frozen=True)
class Destination:
    """Where merge and import put facts: a new folder `out`, or the database `into`; just one of them is given."""

    out: Path | None
    into: Path | None
    on_conflict: str
    gamma: float | None

    def require(self, verb: str) -> None:
        """Raise UsageError unless exactly one place is given, and StoreError where nothing can be written there."""
        from neuraldb_faiss.database import NeuralDB
        from neuraldb_faiss.store import check_new

        if (self.out is None) == (self.into is None):
            raise click.UsageError(f"say where to {verb}: --out NEW or --into DB")
        if self.out is not None:
            check_new(self.out)
        elif self.into is not None:
            NeuralDB.open(self.into).close()


@dataclass(frozen=True)
class Address:
    """Where a server listens, and the names by which clients may ask it."""

    host: str
    port: int
    allowed_hosts: tuple[str, ...]


db = click.argument("db", type=click.Path(path_type=Path))
model_named = click.option("--model", metavar="M", required=True, help="Model folder, or a name on the model hub.")
device = click.option(
    "--device", help="cpu, cuda, cuda:1, or auto to spread the layers over devices. [default: the GPU if there is one]"
)
dtype = click.option(
    "--dtype",
    type=Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Type of the model's weights. [default: float32 on a CPU, the stored one elsewhere]",
)
where = section(MODEL, device, dtype)
model = bundle(
    "model",
    ModelChoice,
    section(
        MODEL,
        click.option(
            "--model", metavar="M", help="Model folder, or hub name. [default: the one recorded in the database]"
        ),
    ),
    where,
)
model_required = bundle("model", ModelChoice, section(MODEL, model_named), where)
model_or_none = bundle(
    "model",
    ModelChoice,
    section(
        MODEL,
        click.option(
            "--model",
            metavar="M",
            required=True,
            help="Model folder, or a name on the model hub; none: the facts are only to be stated (--delivery text),"
            " and nothing is solved.",
        ),
    ),
    where,
)
model_to_solve = bundle(
    "model",
    ModelChoice,
    click.option(
        "--model",
        metavar="M",
        help="Solve facts whose entry changed at once, with this model. [default: they wait for `neuraldb solve`]",
    ),
    where,
)
reading = section(
    FACTS,
    click.argument("sources", metavar="[FACTS]...", nargs=-1),
    click.option("--subject", help="One fact without a file: what it is about."),
    click.option("--prompt", help="Its prompt, with {} for the subject, or with the subject written out."),
    click.option("--target", help="What the model is to say behind the prompt."),
    click.option(
        "--format", "format_", type=Choice(list(FORMATS)), default="auto", show_default=True,
        help="Format of the records.",
    ),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Read only the first N good facts."),
    click.option(
        "--on-conflict", type=Choice(["error", "first", "last"]), default="error", show_default=True,
        help="Which target to take where one subject and prompt has several.",
    ),
    click.option(
        "--templates", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.toml",
        help="Words of relations, for triples (subject, relation, object). [default: of 112 Wikidata relations]",
    ),
    click.option("--skip-bad", is_flag=True, help="Skip and count bad records, instead of stopping at the first."),
)  # fmt: skip


def given_facts(subject: str | None, prompt: str | None, target: str | None, **how: Any) -> FactFiles:
    """The facts of files, and the one given as options. Raises UsageError where there is none, or half of one."""
    parts = {"--subject": subject, "--prompt": prompt, "--target": target}
    missing = [name for name, value in parts.items() if value is None]
    if len(missing) == len(parts):
        if not how["sources"]:
            raise click.UsageError("say which facts: files of them, or one as --subject S --prompt P --target T")
        return FactFiles(**how)
    if missing:
        raise click.UsageError(f"a fact needs --subject, --prompt and --target: {' and '.join(missing)} is missing")
    fact = Fact(subject or "", prompt or "", target or "", source="command line")
    return FactFiles(**how, inline=fact)


def _checked_gamma(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    return None if value is None else check_gamma(value)


def _gamma(text: str) -> Any:
    """The option --gamma with this help; a value out of range is refused before anything is loaded."""
    return click.option("--gamma", type=float, callback=_checked_gamma, help=text)


def _in_folder(_ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.absolute().parent.is_dir():
        raise StoreError(f"{param.opts[0]} {value}: there is no folder {value.parent} to write it in")
    return value


def new_file(name: str, **how: Any) -> Any:
    """An option that names a file to write, in a folder that is there."""
    return click.option(name, type=click.Path(dir_okay=False, path_type=Path), callback=_in_folder, **how)


fact_files = bundle("files", given_facts, reading)
gamma = _gamma("The gate: a fact fires where the cosine exceeds this. [default: 0.45 with a guard, 0.65 without]")
guards = Kinds(lambda: guard_registry.REGISTRY.kinds)
guard = click.option(
    "--guard",
    type=guards,
    help="; ".join(f"{kind.name}: {kind.help}" for kind in guard_registry.REGISTRY.kinds.values())
    + f". [default: {guard_registry.DEFAULT}, and answer for --residual answer]",
)
delivery = click.option(
    "--delivery",
    type=Choice(DELIVERIES),
    help="How facts reach a request: residual (added inside of the model), text (stated in the prompt), both, or auto"
    " (the best for its kind).",
)
kinds = Kinds(index_registry.names)
index = click.option("--index", type=kinds, default="auto", show_default=True, help="How keys are searched.")
gate_now = both(
    _gamma("Use this gate in place of the database's, for this call."),
    click.option("--guard", type=guards, help="Use this guard in place of the database's, for this call."),
)
gate_choice = bundle("gate", GateChoice, gate_now, index)
lists = both(
    click.option("--nlist", type=click.IntRange(1), help="ivf: number of lists. [default: by the number of keys]"),
    click.option("--nprobe", type=click.IntRange(1), help="ivf: lists searched. [default: by the number of lists]"),
    click.option(
        "--index-option",
        "index_options",
        type=(str, click.IntRange(1)),
        multiple=True,
        metavar="NAME N",
        help="Option of an index kind that another package brings. Repeatable.",
    ),
)
ffn_module = click.option(
    "--ffn-module",
    metavar="PATTERN",
    help='Name of the FFN\'s down-projection, as in "model.layers.{}.mlp.down_proj", for models where it is not found.',
)
as_json = section(OUTPUT, click.option("--json", "as_json", is_flag=True, help="Print JSON."))
wait = section(
    OUTPUT,
    click.option(
        "--wait",
        type=click.FloatRange(0),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for another writer.",
    ),
)
drop_failed = section(
    OUTPUT,
    click.option(
        "--drop-failed", is_flag=True, help="Leave out facts that the model still does not say after solving."
    ),
)
new_database = section(
    OUTPUT,
    click.option(
        "--out", required=True, type=click.Path(path_type=Path), metavar="DB", help="Folder of the new database."
    ),
)
destination = bundle(
    "destination",
    Destination,
    click.option("--out", type=click.Path(path_type=Path), metavar="DB", help="Make a new database in this folder."),
    click.option("--into", type=click.Path(path_type=Path), metavar="DB", help="Add the facts to this database."),
    click.option(
        "--on-conflict",
        type=Choice(["error", "first", "last"]),
        default="error",
        show_default=True,
        help="For a fact that comes with several targets: refuse, or take the first or the last (--into comes first).",
    ),
    _gamma("The gate from now on; required where the gates differ."),
)


def address(port: int) -> Any:
    """Options of a server's address, with this default port."""
    return bundle(
        "address",
        Address,
        click.option(
            "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all of them."
        ),
        click.option(
            "--port", type=click.IntRange(0, 65535), default=port, show_default=True, help="Port; 0 for a free one."
        ),
        click.option(
            "--allowed-host", "allowed_hosts", metavar="NAME", multiple=True,
            help="Another name, or address, by which clients ask this server (header Host), and whose pages may ask it."
            " Repeatable; '*' for all. [default: localhost, loopback addresses and --host]",
        ),
    )  # fmt: skip


def index_settings(
    index: str, nlist: int | None, nprobe: int | None, index_options: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    """The setting `index` of a database; auto is flat, the kind that is exact."""
    options = {name: value for name, value in (("nlist", nlist), ("nprobe", nprobe), *index_options) if value}
    try:
        return {"kind": index_registry.check_kind(index, options), **options}
    except SearchError as error:
        raise click.UsageError(str(error)) from None
