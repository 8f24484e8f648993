"""`neuraldb push`: a database uploaded to the model hub."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import emit_json, progress


@click.command()
@opt.db
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make the repository private, where it is made. [default: the hub's]")
@click.option("--revision", metavar="BRANCH", help="The branch to push to; made where it is missing. [default: main]")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--licence", metavar="ID", help="Of the facts, as the hub abbreviates it (mit, cc-by-4.0): for the card.")
@opt.as_json
def push(
    db: Path,
    repo: str,
    private: bool,
    revision: str | None,
    message: str | None,
    licence: str | None,
    as_json: bool,
) -> None:
    """Put a database on the model hub as REPO (OWNER/NAME), as one commit, with a card.

    The history goes along, and with it facts that were removed since: `neuraldb compact` ends it first. The hub's own
    settings count: HF_TOKEN or `hf auth login`, HF_HOME, HF_ENDPOINT.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database, progress("pushing"):
        url = database.push_to_hub(
            repo, private=private or None, revision=revision, commit_message=message, license=licence
        )
    if as_json:
        emit_json({"repo": repo, "revision": revision or "main", "commit": url})
    else:
        click.echo(url)
