"""`neuraldb serve`: a model with databases attached, behind an OpenAI-compatible API."""

from __future__ import annotations

from collections.abc import Sequence

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import model_of
from neuraldb_faiss.cli.output import say, warn
from neuraldb_faiss.errors import ServeError


@click.command()
@click.argument("databases", metavar="DB...", nargs=-1, required=True)
@opt.model
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve on; 0.0.0.0 for all.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to serve on; 0 for a free one."
)
@click.option(
    "--token",
    "tokens",
    metavar="[NAME=]TOKEN",
    multiple=True,
    envvar="NEURALDB_TOKEN",
    help="Needed to change facts. With a database's NAME, needed for whatever touches that one."
    " Several: repeat it (in NEURALDB_TOKEN: with spaces between). [default: facts cannot be changed]",
)
@opt.allowed_hosts
@click.option(
    "--max-prompt-tokens", type=click.IntRange(1), default=4096, show_default=True, metavar="N",
    help="Length of a prompt, at most.",
)  # fmt: skip
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=1024, show_default=True, metavar="N",
    help="Length of an answer, at most.",
)  # fmt: skip
@click.option(
    "--max-batch", type=click.IntRange(1), default=16, show_default=True, metavar="N",
    help="Requests answered at once, at most.",
)  # fmt: skip
@click.option(
    "--max-queue", type=click.IntRange(1), default=128, show_default=True, metavar="N",
    help="Requests that may wait; the next one is refused (429).",
)  # fmt: skip
@click.option(
    "--max-body", type=click.IntRange(1), default=1 << 20, show_default=True, metavar="BYTES",
    help="Size of a request, at most.",
)  # fmt: skip
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), default=120.0, show_default=True, metavar="SECONDS",
    help="How long a request may wait and run.",
)  # fmt: skip
@click.option(
    "--grace", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long what runs may go on once the server is told to stop.",
)  # fmt: skip
@opt.where
def serve(
    databases: tuple[str, ...],
    model: str | None,
    host: str,
    port: int,
    tokens: tuple[str, ...],
    allowed_hosts: tuple[str, ...],
    max_prompt_tokens: int,
    max_new_tokens: int,
    max_batch: int,
    max_queue: int,
    max_body: int,
    timeout: float,
    grace: float,
    device: str | None,
    dtype: str | None,
) -> None:
    """Serve a model with databases attached, for clients of OpenAI's API.

    DB is a database's folder, or NAME=folder; requests name it behind a plus: "model": "MODEL+NAME". GET /v1/models
    lists what may be named. With one database, MODEL alone answers from it.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(f"{error.name} is not installed: pip install 'neuraldb-faiss[serve]'") from None
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.settings import Limits, named_databases, read_tokens

    named = named_databases(databases)
    access = read_tokens(tokens, list(named))
    limits = Limits(
        prompt_tokens=max_prompt_tokens, new_tokens=max_new_tokens, body=max_body, timeout=timeout, queue=max_queue,
        batch=max_batch, grace=grace,
    )  # fmt: skip
    from neuraldb_faiss.serving.server import Server, bind

    with bind(host, port) as bound:
        address = bound.getsockname()
        hosts = Hosts.of(host, address[0], allowed_hosts)
        with NeuralDB.open(next(iter(named.values()))) as database:
            loaded, tokenizer = model_of(database, model, device, dtype)
        where = f"http://{f'[{address[0]}]' if ':' in address[0] else address[0]}:{address[1]}/v1"

        def ready(models: Sequence[str]) -> None:
            say(f"serving {', '.join(models)}")
            say(f"at {where} (stop with Ctrl-C)")

        server = Server(loaded, tokenizer, named, bound, tokens=access, limits=limits, ready=ready, hosts=hosts)
        if access.common is None and len(access.own) < len(named):
            warn("no --token: facts of databases without one cannot be changed here")
        server.serve_until_told()
    say("stopped")
