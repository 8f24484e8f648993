"""`neuraldb serve`: a model with databases attached, behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli import serve_options as options
from neuraldb_faiss.cli.config_file import config_option, with_environment
from neuraldb_faiss.cli.loading import ModelChoice, require_server_packages
from neuraldb_faiss.cli.output import say, warn
from neuraldb_faiss.cli.param_types import Choice
from neuraldb_faiss.config import DELIVERIES

if TYPE_CHECKING:
    from neuraldb_faiss.serving.settings import Limits


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
@options.tokens
@click.option(
    "--delivery",
    type=Choice(DELIVERIES),
    help="How facts reach requests that do not say: residual (added inside of the model), text (stated in the prompt),"
    " both, or auto (the best for the kind of request). [default: as each database says, which is auto]",
)
@click.option(
    "--default",
    metavar="NAME",
    help="Database of requests that name none; 'none' for the model alone. [default: the only database; with several,"
    " the model alone]",
)
@options.limits
def serve(
    databases: tuple[str, ...], model: ModelChoice, address: opt.Address, tokens: list[str],
    delivery: str | None, default: str | None, limits: Limits,
) -> None:  # fmt: skip
    """Serve a model with databases attached, for clients of OpenAI's API.

    Every option can be set in the environment too, as NEURALDB_SERVE_PORT, and in a file (--config).

    DB is a database's folder, or NAME=folder; requests name it behind a plus: "model": "MODEL+NAME". GET /v1/models
    lists what may be named. MODEL alone answers from --default, or from the only database.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.serving.settings import ServerSettings, check_default, named_databases, read_tokens

    named = named_databases(databases)
    for place in named.values():
        NeuralDB.open(place).close()
    access = read_tokens(tokens, list(named))
    check_default(default, list(named))
    with NeuralDB.open(next(iter(named.values()))) as database:
        model.check_for(database)
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
            if len(named) > 1 and default is None:
                warn(
                    f"requests for {models[0]} alone get no facts, for there are several databases: clients choose one"
                    f" by its name, as in {models[1]}, or start with --default and one of {', '.join(named)}, none"
                )
            say(f"at {where} (stop with Ctrl-C)")

        settings = ServerSettings(access, limits, hosts, delivery, default)
        server = Server(loaded, tokenizer, named, bound, settings, ready=ready)
        if not all(access.to_change(name) for name in named):
            warn("no --token: facts of databases without one cannot be changed here")
        server.serve_until_told()
    say("stopped")


with_environment(serve, "NEURALDB_SERVE")
