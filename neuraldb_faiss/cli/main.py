"""The root command: the registry of all commands, logging, and errors as one line with an exit code."""

from __future__ import annotations

import difflib
import logging
import traceback
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any

import click

from neuraldb_faiss.cli.output import never_fail_on_text
from neuraldb_faiss.errors import NeuralDBError

ENTRY_POINTS = "neuraldb_faiss.commands"  # where other packages name commands of theirs
FACTS, ASKING, SERVING = "Facts and databases", "Asking a model", "Serving"
MEASURING, MAINTENANCE = "Measuring", "Maintenance"
OTHERS = "Commands of other packages"
GROUPS = (FACTS, ASKING, SERVING, MEASURING, MAINTENANCE, OTHERS)


@dataclass(frozen=True)
class Row:
    """One command of the registry.

    Attributes:
        target: "module:attribute" in cli/commands, a click command. The module is imported when the help lists the
            command or somebody runs it, and imports no torch, transformers, faiss or datasets before the command runs.
        group: heading of the help under which the command stands, one of GROUPS.
    """

    target: str
    group: str


COMMANDS: dict[str, Row] = {
    "demo": Row("demo:demo", FACTS),
    "models": Row("models:models", FACTS),
    "build": Row("build:build", FACTS),
    "rebuild": Row("rebuild:rebuild", FACTS),
    "add": Row("add:add", FACTS),
    "remove": Row("remove:remove", FACTS),
    "solve": Row("solve:solve", FACTS),
    "merge": Row("merge:merge", FACTS),
    "export": Row("export:export", FACTS),
    "import": Row("import_:import_", FACTS),
    "push": Row("push:push", FACTS),
    "facts": Row("facts:facts", FACTS),
    "info": Row("info:info", FACTS),
    "generate": Row("generate:generate", ASKING),
    "explain": Row("explain:explain", ASKING),
    "serve": Row("serve:serve", SERVING),
    "inspect": Row("inspect:inspect", SERVING),
    "test": Row("test:test", MEASURING),
    "eval": Row("eval:evaluate", MEASURING),
    "lm-eval": Row("lm_eval:lm_eval", MEASURING),
    "experiment": Row("experiment:experiment", MEASURING),
    "tune-layer": Row("tune_layer:tune_layer", MEASURING),
    "report": Row("report:report", MEASURING),
    "statistics": Row("statistics:statistics", MEASURING),
    "bench": Row("bench:bench", MEASURING),
    "history": Row("history:history", MAINTENANCE),
    "rollback": Row("rollback:rollback", MAINTENANCE),
    "compact": Row("compact:compact", MAINTENANCE),
    "reindex": Row("reindex:reindex", MAINTENANCE),
    "calibrate": Row("calibrate:calibrate", MAINTENANCE),
    "verify": Row("verify:verify", MAINTENANCE),
}
VERSIONS = (("neuraldb-faiss",), ("torch",), ("transformers",), ("faiss-cpu", "faiss-gpu"))


@cache
def plugins() -> dict[str, EntryPoint]:
    """Commands of other packages, by name: their entry points in the group ENTRY_POINTS. Own commands come first."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in COMMANDS}


class Commands(click.Group):
    """Commands that are imported when they are used; what they raise is reported in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        never_fail_on_text()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(plugins())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name].target.partition(":")
            command: click.Command = getattr(import_module(f"{__package__}.commands.{module}"), attribute)
            return command
        return _of_plugin(plugins()[cmd_name]) if cmd_name in plugins() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else " `neuraldb --help` lists the commands."
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under the headings of their groups."""
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                group = COMMANDS[name].group if name in COMMANDS else OTHERS
                rows[group].append((name, command.get_short_help_str(limit=200)))
        for group, listed in rows.items():
            if listed:
                with formatter.section(group):
                    formatter.write_dl(listed)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own business
        except KeyboardInterrupt:
            click.echo("\nInterrupted; no partial changes. Run the command again to resume.", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise click.ClickException(reason(error)) from error


def _of_plugin(point: EntryPoint) -> click.Command:
    """The command of another package; where it cannot be loaded, one that says why when it is run."""
    try:
        command = point.load()
    except Exception as error:  # whatever another package raises must not hide this one's help
        why = f"{point.value} cannot be imported: {error}"
    else:
        if isinstance(command, click.Command):
            return command
        why = f"{point.value} is a {type(command).__name__}, not a click command"
    text = f"Not available: the entry point {point.name} of the group {ENTRY_POINTS}: {why}."

    def fail() -> None:
        raise click.ClickException(text)

    return click.Command(point.name, callback=fail, help=text)


def reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, NeuralDBError):
        text = str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, on a GPU
        text = "out of memory: use a smaller model, another --dtype or --device, or fewer facts at once"
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    else:
        text = f"unexpected {type(error).__name__}: {error} (`neuraldb --debug ...` shows where)"
    return " ".join(text.split()) or type(error).__name__


class _ToStderr(logging.Handler):
    """Log lines as people read them, on whatever stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        click.echo(mark + " ".join(record.getMessage().split()), err=True)
        if record.exc_info:  # of a server: its log is all that is left of an error
            click.echo("".join(traceback.format_exception(*record.exc_info)).rstrip(), err=True)


def _set_up_logging(debug: bool) -> None:
    logger = logging.getLogger("neuraldb_faiss")
    logger.handlers = [_ToStderr()]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False


def _print_versions(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or ctx.resilient_parsing:
        return
    for names in VERSIONS:
        click.echo(_installed(names))
    ctx.exit()


def _installed(names: tuple[str, ...]) -> str:
    for name in names:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"{' or '.join(names)}: not installed"


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Print the versions of this package, torch, transformers and FAISS, and exit.",
)
@click.option(
    "--debug",
    is_flag=True,
    envvar="NEURALDB_DEBUG",
    help="Show the traceback of an error (also: NEURALDB_DEBUG=1).",
)
def cli(debug: bool) -> None:
    """Edit what a language model knows: a database of facts beside a frozen model.

    Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (one line says why),
    2 wrong usage.
    """
    _set_up_logging(debug)


def main() -> None:
    """Entry point of the installed command, and of `python -m neuraldb_faiss.cli`."""
    cli(prog_name="neuraldb")
