"""`neuraldb push`: a database uploaded to the model hub."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import emit_json, progress


@click.command(epilog=opt.example("neuraldb push db OWNER/NAME --private --licence cc-by-4.0"))
@opt.db
@click.argument("repo")
@click.option("--private", is_flag=True, help="Make a new repository private. [default: as the hub does]")
@click.option("--revision", metavar="BRANCH", help="Branch to push to; made if it is missing. [default: main]")
@click.option("--message", metavar="TEXT", help="Message of the commit.")
@click.option("--licence", metavar="ID", help="Licence of the facts for the card, as the hub abbreviates it (mit).")
@opt.as_json
def push(
    db: Path, repo: str, private: bool, revision: str | None, message: str | None, licence: str | None, as_json: bool
) -> None:  # fmt: skip
    """Upload a database to the model hub as REPO (OWNER/NAME), as one commit with a card.

    The history goes along, and with it facts that were removed since; `neuraldb compact` ends the history first. The
    hub's own settings hold: HF_TOKEN or `hf auth login`, HF_HOME, HF_ENDPOINT.
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
