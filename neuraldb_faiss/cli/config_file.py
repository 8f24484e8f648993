"""Settings of a command from a TOML file and from the environment."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import click

from neuraldb_faiss.errors import did_you_mean


def config_option() -> Any:
    """The option --config: a TOML file whose table with the command's name holds its settings, by their names."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE.toml",
        is_eager=True,
        expose_value=False,
        envvar="NEURALDB_CONFIG",
        callback=_read,
        help="File with settings of this command: a table [serve] with the options' names, as in port = 8000."
        " What is given as an option, or in the environment, comes first.",
    )


def with_environment(command: click.Command, prefix: str) -> click.Command:
    """The command, whose options take their values from the environment too: --max-batch from PREFIX_MAX_BATCH."""
    for param in command.params:
        if isinstance(param, click.Option) and param.envvar is None and param.expose_value:
            param.envvar = f"{prefix}_{_names(param)[0].replace('-', '_').upper()}"
    return command


def _read(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    table = ctx.command.name or ""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get(table, {})
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path} is not TOML: {error}") from None
    if not isinstance(found, dict):
        raise click.ClickException(f"{path}: {table} must be a table, [{table}]")
    params = {name: param for param in ctx.command.params for name in _names(param)}
    ctx.default_map = {**(ctx.default_map or {})}
    for name, value in found.items():
        param = params.get(name.replace("_", "-"))
        if param is None or param.name is None:
            known = ", ".join(sorted(name for name, one in params.items() if one.name != "help"))
            hint = did_you_mean(name, params)
            raise click.ClickException(f"{path}: [{table}] has no setting {name!r}; it has {known}.{hint}")
        several = param.multiple if isinstance(param, click.Option) else param.nargs == -1
        if isinstance(value, dict) or isinstance(value, list) != several:
            rule = "a list" if several else "one value"
            raise click.ClickException(f"{path}: {name} in [{table}] must be {rule}")
        ctx.default_map[param.name] = value


def _names(param: click.Parameter) -> list[str]:
    """What a setting is called in the file: the option's long names, and an argument's own name."""
    if isinstance(param, click.Argument):
        return [str(param.name)]
    return [name.removeprefix("--") for name in (*param.opts, *param.secondary_opts) if name.startswith("--")]
