"""`neuraldb merge`: several databases joined into one."""

from __future__ import annotations

from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, progress, say


@click.command(epilog=opt.example("neuraldb merge db1 db2 --out all", "neuraldb merge db2 --into db1"))
@click.argument("sources", nargs=-1, required=True, metavar="DB...", type=click.Path(path_type=Path))
@opt.destination
@click.option("--link", is_flag=True, help="Hard-link the arrays instead of copying them (on one file system).")
@opt.model_to_solve
@opt.wait
@opt.as_json
def merge(
    sources: tuple[Path, ...], destination: opt.Destination, link: bool, model: ModelChoice, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Merge databases of one model and layer into one, as one generation."""
    destination.require("merge")
    out, into = destination.out, destination.into
    from neuraldb_faiss.create import merge as merge_databases
    from neuraldb_faiss.edits.merge import check_mergeable

    check_mergeable([*([into] if into else []), *sources], destination.gamma)  # before a model is loaded
    loaded, tokenizer = model.load()
    command = " ".join(["merge", *map(str, sources), "--into" if into else "--out", str(into or out)])
    with progress("merging") as report:
        database = merge_databases(
            sources,
            out,
            into=into,
            on_conflict=destination.on_conflict,
            gamma=destination.gamma,
            link=link,
            model=loaded,
            tokenizer=tokenizer,
            report=report,
            wait=wait,
            command=command,
        )
    with database:
        info = database.info()
        shared = database.share_index(sources) if into is None else None
        if info["index"]["kind"] == "ivf":
            database.matcher()  # the index is made now, not when the first question is asked
            say("ivf: " + (f"the quantiser of {shared} is shared" if shared else "the quantiser was trained anew"))
    if as_json:
        emit_json(info)
        return
    click.echo(f"{info['path']}: generation {info['generation']}, {count(info['facts'], 'fact')}")
    if info["waiting"]:
        say(f"{count(info['waiting'], 'fact')} share a key: until `neuraldb solve {info['path']}` one hides the other")
