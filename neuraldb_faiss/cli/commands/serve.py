"""`neuraldb serve`: a model with databases attached, behind an OpenAI-compatible API."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli import serve_options as options
from neuraldb_faiss.cli.config_file import config_option, with_environment
from neuraldb_faiss.cli.loading import ModelChoice, require_server_packages
from neuraldb_faiss.cli.output import messages_to, say, warn

if TYPE_CHECKING:
    from neuraldb_faiss.serving.metrics import Metrics
    from neuraldb_faiss.serving.service import Backend, Load
    from neuraldb_faiss.serving.settings import Limits, ServerSettings


@click.command(
    epilog=opt.example(
        "neuraldb serve db",
        "neuraldb serve en=db1 fr=db2 --host 0.0.0.0 --token SECRET",
        "neuraldb serve db --upstream http://127.0.0.1:11434/v1",
    ),
)
@click.argument("databases", metavar="DB...", nargs=-1, required=True, envvar="NEURALDB_SERVE_DATABASES")
@config_option()
@opt.model
@opt.address(8000)
@options.access
@options.answering
@options.log
@options.limits
def serve(
    databases: tuple[str, ...], model: ModelChoice, address: opt.Address, access: options.Access,
    answering: options.Answering, log: options.LogChoice, limits: Limits,
) -> None:  # fmt: skip
    """Serve a model with databases attached, for clients of OpenAI's API; or, with --upstream, put databases before a
    server that has one.

    Every option can be set in the environment too, as NEURALDB_SERVE_PORT, and in a file (--config).

    DB is a database's folder, or NAME=folder; requests name it behind a plus: "model": "MODEL+NAME". GET /v1/models
    lists what may be named. MODEL alone answers from --default, or from the only database.
    """
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.serving.settings import ServerSettings, check_default, named_databases, read_tokens

    named = named_databases(databases)
    for place in named.values():
        NeuralDB.open(place).close()
    tokens = read_tokens(access.tokens, list(named))
    check_default(answering.default, list(named))
    if answering.upstream is None:
        with NeuralDB.open(next(iter(named.values()))) as database:
            model.check_for(database)
    elif model != ModelChoice(None, None, None):
        raise click.UsageError("--upstream loads no model: leave --model, --device and --dtype out")
    require_server_packages(*["httpx2"] * (answering.upstream is not None))
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.logs import logging_to, message
    from neuraldb_faiss.serving.server import Server, bind

    with ExitStack() as stack:
        bound = stack.enter_context(bind(address.host, address.port))
        stack.enter_context(logging_to(sys.stderr, log.level, log.form))
        if log.form == "json":  # then every line is
            stack.enter_context(messages_to(message))
        at, port = bound.getsockname()[:2]
        hosts = Hosts.of(address.host, at, address.allowed_hosts, access.origins)
        settings = ServerSettings(tokens, limits, hosts, answering.delivery, answering.default, log.content)
        where = f"http://{f'[{at}]' if ':' in at else at}:{port}/v1"
        load: Load = partial(_model, model, named, settings)
        if answering.upstream is not None:
            load = _gateway(answering, named, settings)

        def ready(models: Sequence[str]) -> None:
            behind = "" if answering.upstream is None else f" behind the models of {answering.upstream}"
            say(f"serving {', '.join(models)}{behind}")
            if len(named) > 1 and answering.default is None:
                alone, other = ("a model", f"MODEL{models[0]}") if behind else models[:2]
                warn(
                    f"requests for {alone} alone get no facts, for there are several databases: clients choose one by"
                    f" its name, as in {other}, or start with --default and one of {', '.join(named)}, none"
                )
            say(f"at {where} (stop with Ctrl-C)")

        if not all(tokens.to_change(name) for name in named):
            warn("no --token: facts of databases without one cannot be changed here")
        Server(load, bound, settings, ready=ready).serve_until_told()
        say("stopped")


def _model(model: ModelChoice, databases: Mapping[str, Path], settings: ServerSettings, metrics: Metrics) -> Backend:
    """The model that is named, or that of the first database, with the databases attached."""
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.serving.model_backend import model_backend

    def loaded() -> tuple[Any, Any]:
        with NeuralDB.open(next(iter(databases.values()))) as database:
            return model.load_for(database)

    return model_backend(loaded, databases, settings, metrics)


def _gateway(answering: options.Answering, databases: Mapping[str, Path], settings: ServerSettings) -> Load:
    """The databases before the upstream server. Raises ServeError for a URL that is none."""
    from neuraldb_faiss.serving.gateway.backend import gateway_backend
    from neuraldb_faiss.serving.gateway.upstream import Target

    return partial(gateway_backend, Target.of(answering.upstream or "", answering.upstream_key), databases, settings)


with_environment(serve, "NEURALDB_SERVE")
