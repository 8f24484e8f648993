"""`neuraldb inspect`: a database shown on a local page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice, require_server_packages
from neuraldb_faiss.cli.output import say, warn


@click.command(epilog=opt.example("neuraldb inspect db"))
@opt.db
@opt.model
@opt.address(8001)
def inspect(db: Path, model: ModelChoice, address: opt.Address) -> None:
    """Show DB on a local page: prompts token by token, facts, generations, the gate.

    The address that is printed holds a token made for this run; who has it may read and change the facts.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        model.check_for(database)  # before the server's packages are imported
    require_server_packages()
    from neuraldb_faiss.inspector.app import NAME, Inspected, routes
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.server import Server, bind
    from neuraldb_faiss.serving.settings import ServerSettings, Tokens

    token = secrets.token_urlsafe(24)
    with bind(address.host, address.port) as bound:
        at, port = bound.getsockname()[:2]
        hosts = Hosts.of(address.host, at, address.allowed_hosts)
        with NeuralDB.open(db) as database:
            loaded, tokenizer = model.load_for(database)
        if not at.startswith("127.") and at != "::1":
            warn(f"{address.host} can be reached by other machines: the page and its token are sent unencrypted")
        place = f"[{at}]" if ":" in at else at

        def ready(_: Sequence[str]) -> None:
            say("open this address in a browser (stop with Ctrl-C):")
            click.echo(f"http://{place}:{port}/#token={token}")

        with closing(Inspected(db)) as inspected:
            settings = ServerSettings(Tokens(None, {NAME: token}), hosts=hosts)
            page = [routes(inspected)]
            server = Server(loaded, tokenizer, {NAME: db}, bound, settings, ready=ready, routers=page)
            server.serve_until_told()
    say("stopped")
