"""`neuraldb inspect`: a database shown on a local page."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import say, warn
from neuraldb_faiss.errors import ServeError


@click.command()
@opt.db
@opt.model
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8001, show_default=True, help="Port to serve on; 0 for a free one."
)
@opt.allowed_hosts
@opt.where
def inspect(
    db: Path, model: str | None, host: str, port: int, allowed_hosts: tuple[str, ...], device: str | None,
    dtype: str | None,
) -> None:  # fmt: skip
    """Look at DB on a local page: prompts token by token, facts, generations, the gate.

    The address that is printed holds a token made for this run; who has it may read and change the facts.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed: pip install 'neuraldb-faiss[serve]'") from None
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.inspector.app import NAME, Inspected, routes
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.server import Server, bind
    from neuraldb_faiss.serving.settings import Limits, Tokens

    token = secrets.token_urlsafe(24)
    with bind(host, port) as bound:
        address = bound.getsockname()
        hosts = Hosts.of(host, address[0], allowed_hosts)
        with NeuralDB.open(db) as database:
            loaded, tokenizer = model_of(database, model, device, dtype)
        if not address[0].startswith("127.") and address[0] != "::1":
            warn(f"{host} is not this machine alone: the page and its token go over the network as they are")
        place = f"[{address[0]}]" if ":" in address[0] else address[0]

        def ready(_: Sequence[str]) -> None:
            say("open this address in a browser (stop with Ctrl-C):")
            click.echo(f"http://{place}:{address[1]}/#token={token}")

        with closing(Inspected(db)) as inspected:
            server = Server(
                loaded, tokenizer, {NAME: db}, bound, tokens=Tokens(None, {NAME: token}), limits=Limits(), ready=ready,
                routers=[routes(inspected)], hosts=hosts,
            )  # fmt: skip
            server.serve_until_told()
    say("stopped")
