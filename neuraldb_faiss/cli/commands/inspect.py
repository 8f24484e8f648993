"""`neuraldb inspect`: databases shown on a local page."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice, require_server_packages
from neuraldb_faiss.cli.output import say, warn

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB

_ONE = "db"  # the server's name of a database that is shown alone, whatever its folder is called


@click.command(
    epilog=opt.example(
        "neuraldb inspect db", "neuraldb inspect en=db1 fr=db2", "neuraldb inspect db --answers run.jsonl"
    )
)
@click.argument("databases", metavar="DB...", nargs=-1, required=True)
@opt.model
@opt.address(8001)
@click.option(
    "--answers",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Run or report of neuraldb test (--out, or its --json) whose lights the facts get. "
    "[default: the newest *.report.json of the database that lies beside it or here]",
)
def inspect(databases: tuple[str, ...], model: ModelChoice, address: opt.Address, answers: Path | None) -> None:
    """Show databases of one model on a local page: prompts token by token, facts, generations, the gate.

    DB is a database's folder; of several, NAME=folder gives one another name. The address that is printed holds a
    token made for this run; who has it may read and change the facts.
    """
    from neuraldb_faiss.answers.report_file import read_report
    from neuraldb_faiss.serving.settings import ServerSettings, Tokens, named_databases

    named = {_ONE: Path(databases[0])} if len(databases) == 1 else named_databases(databases)
    if len(databases) == 1 and "=" in databases[0] and not named[_ONE].exists():
        named = named_databases(databases)
    with _opened(named) as database:
        model.check_for(database)  # before the server's packages are imported
    report = None if answers is None else read_report(answers)
    require_server_packages()
    from neuraldb_faiss.inspector.app import Inspected, routes
    from neuraldb_faiss.serving.hosts import Hosts
    from neuraldb_faiss.serving.model_backend import model_backend
    from neuraldb_faiss.serving.server import Server, bind

    reports = {} if report is None else {_about(report.database, named): report}
    token = secrets.token_urlsafe(24)
    with bind(address.host, address.port) as bound:
        at, port = bound.getsockname()[:2]
        hosts = Hosts.of(address.host, at, address.allowed_hosts)
        if not at.startswith("127.") and at != "::1":
            warn(f"{address.host} can be reached by other machines: the page and its token are sent unencrypted")
        address_name = f"[{at}]" if ":" in at else at
        settings = ServerSettings(Tokens(None, dict.fromkeys(named, token)), hosts=hosts)

        def loaded() -> tuple[Any, Any]:
            with _opened(named) as database:
                return model.load_for(database)

        def ready(_: Sequence[str]) -> None:
            say("open this address in a browser (stop with Ctrl-C):")
            click.echo(f"http://{address_name}:{port}/#token={token}")

        with closing(Inspected(named, reports)) as inspected:
            load = partial(model_backend, loaded, named, settings)
            Server(load, bound, settings, ready=ready, routers=[routes(inspected)]).serve_until_told()
    say("stopped")


@contextmanager
def _opened(named: Mapping[str, Path]) -> Iterator[NeuralDB]:
    """The first of these databases that was built with a model, else the first. Raises StoreError where one cannot be
    opened."""
    from neuraldb_faiss.database import NeuralDB

    with ExitStack() as stack:
        opened = [stack.enter_context(NeuralDB.open(path)) for path in named.values()]
        yield next((db for db in opened if db.config.has_model), opened[0])


def _about(database: str, named: Mapping[str, Path]) -> str:
    """Which of these a report is about: the one whose folder is called as its database, else the first."""
    name = Path(database).name
    return next((one for one, path in named.items() if path.resolve().name == name), next(iter(named)))
