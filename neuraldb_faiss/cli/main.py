"""The root command: logging, and errors as one line with an exit code."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from neuraldb_faiss.cli.output import never_fail_on_text
from neuraldb_faiss.cli.registry import GROUPS, REGISTRY
from neuraldb_faiss.errors import NeuralDBError, did_you_mean

VERSIONS = (("neuraldb-faiss",), ("torch",), ("transformers",), ("faiss-cpu", "faiss-gpu"))


class Commands(click.Group):
    """Commands that are imported when they are used; what they raise is reported in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        never_fail_on_text()
        return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(REGISTRY.kinds)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return REGISTRY[cmd_name].load() if cmd_name in REGISTRY.kinds else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:
            hint = did_you_mean(name, known) or " `neuraldb --help` lists the commands."
            ctx.fail(f"There is no command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under the headings of their groups."""
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in GROUPS}
        for kind in REGISTRY.kinds.values():
            command = kind.load()
            if not command.hidden:
                rows[kind.group].append((kind.name, command.get_short_help_str(limit=200)))
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


@contextmanager
def logging_to_stderr(debug: bool) -> Iterator[None]:
    """While this lasts, the package's log goes to stderr alone; then its settings are as before, for a program that
    calls a command."""
    logger = logging.getLogger("neuraldb_faiss")
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers = [_ToStderr()]
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


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


_EXAMPLES = """\b
Examples:
  neuraldb models get demo
  neuraldb build facts.csv --model models/SmolLM2-135M-Instruct --out db
  neuraldb test db
  neuraldb chat db
  neuraldb serve db

`neuraldb COMMAND --help` has the options of a command, and examples."""


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EXAMPLES,
)
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
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Edit what a language model knows: a database of facts beside a frozen model.

    Data goes to stdout, progress and messages to stderr. Exit codes: 0 done, 1 failed (one line says why),
    2 wrong usage.
    """
    ctx.with_resource(logging_to_stderr(debug))


def main() -> None:
    """Entry point of the installed command, and of `python -m neuraldb_faiss.cli`."""
    cli(prog_name="neuraldb")
