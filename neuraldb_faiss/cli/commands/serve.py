"""`neuraldb serve`: a model with databases attached, behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.config_file import config_option, with_environment
from neuraldb_faiss.cli.loading import ModelChoice, require_server_packages
from neuraldb_faiss.cli.output import say, warn
from neuraldb_faiss.config import DELIVERIES
from neuraldb_faiss.errors import ServeError

if TYPE_CHECKING:
    from neuraldb_faiss.serving.settings import Limits


def _limits(**given: Any) -> Limits:
    from neuraldb_faiss.serving.settings import Limits

    return Limits(**given)


def _tokens_of(file: Path) -> list[str]:
    try:
        found = file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"the token file {file} cannot be read: {error}") from None
    if not found:
        raise ServeError(f"the token file {file} holds no token")
    return found


@click.command(
    epilog=opt.example(
        "neuraldb serve db",
        "neuraldb serve en=db1 fr=db2 --host 0.0.0.0 --token SECRET",
    ),
)
@click.argument("databases", metavar="DB...", nargs=-1, required=True, envvar="NEURALDB_SERVE_DATABASES")
@config_option()
@opt.model
@opt.address(8000)
@click.option(
    "--token",
    "tokens",
    metavar="[NAME=]TOKEN",
    multiple=True,
    envvar="NEURALDB_TOKEN",
    help="Token that clients need to change facts; with a database's NAME, to use that database at all."
    " Repeatable (in NEURALDB_TOKEN: separated by spaces). [default: facts cannot be changed]",
)
@click.option(
    "--delivery",
    type=click.Choice(DELIVERIES),
    help="How facts reach requests that do not say: residual (added inside of the model), text (stated in the prompt),"
    " both, or auto (the best for the kind of request). [default: as each database says, which is auto]",
)
@click.option(
    "--token-file",
    "token_files",
    metavar="FILE",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="NEURALDB_TOKEN_FILE",
    help="File with such tokens, separated by white space, as secrets are mounted. Repeatable.",
)
@opt.bundle(
    "limits",
    _limits,
    click.option(
        "--max-prompt-tokens", "prompt_tokens", type=click.IntRange(1), default=4096, show_default=True, metavar="N",
        help="Maximum length of a prompt.",
    ),
    click.option(
        "--max-new-tokens", "new_tokens", type=click.IntRange(1), default=1024, show_default=True, metavar="N",
        help="Maximum length of an answer.",
    ),
    click.option(
        "--max-batch", "batch", type=click.IntRange(1), default=16, show_default=True, metavar="N",
        help="Maximum number of requests answered at once.",
    ),
    click.option(
        "--max-queue", "queue", type=click.IntRange(1), default=128, show_default=True, metavar="N",
        help="Maximum number of waiting requests; the next one is refused (429).",
    ),
    click.option(
        "--max-body", "body", type=click.IntRange(1), default=1 << 20, show_default=True, metavar="BYTES",
        help="Maximum size of a request.",
    ),
    click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True, metavar="SECONDS",
        help="How long a request may wait and run.",
    ),
    click.option(
        "--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
        help="How long running requests may take to finish once the server is told to stop.",
    ),
)  # fmt: skip
def serve(
    databases: tuple[str, ...], model: ModelChoice, address: opt.Address, tokens: tuple[str, ...],
    token_files: tuple[Path, ...], delivery: str | None, limits: Limits,
) -> None:  # fmt: skip
    """Serve a model with databases attached, for clients of OpenAI's API.

    Every option can be set in the environment too, as NEURALDB_SERVE_PORT, and in a file (--config).

    DB is a database's folder, or NAME=folder; requests name it behind a plus: "model": "MODEL+NAME". GET /v1/models
    lists what may be named. With one database, MODEL alone answers from it.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.serving.settings import ServerSettings, named_databases, read_tokens

    named = named_databases(databases)
    for place in named.values():
        NeuralDB.open(place).close()
    access = read_tokens([*tokens, *(token for file in token_files for token in _tokens_of(file))], list(named))
    require_server_packages()
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.server import Server, bind

    with bind(address.host, address.port) as bound:
        at, port = bound.getsockname()[:2]
        hosts = Hosts.of(address.host, at, address.allowed_hosts)
        with NeuralDB.open(next(iter(named.values()))) as database:
            loaded, tokenizer = model.load_for(database)
        where = f"http://{f'[{at}]' if ':' in at else at}:{port}/v1"

        def ready(models: Sequence[str]) -> None:
            say(f"serving {', '.join(models)}")
            say(f"at {where} (stop with Ctrl-C)")

        settings = ServerSettings(access, limits, hosts, delivery)
        server = Server(loaded, tokenizer, named, bound, settings, ready=ready)
        if access.common is None and len(access.own) < len(named):
            warn("no --token: facts of databases without one cannot be changed here")
        server.serve_until_told()
    say("stopped")


with_environment(serve, "NEURALDB_SERVE")
