"""`neuraldb verify`: damage found and, on request, taken out of service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.output import count, emit_json, fact_line, plain, progress, say

if TYPE_CHECKING:
    from neuraldb_faiss.store import StoredFact


@click.command(epilog=opt.example("neuraldb verify db --deep", "neuraldb verify db --repair"))
@opt.db
@click.option("--deep", is_flag=True, help="Read every byte and compare it with its checksum.")
@click.option(
    "--repair",
    is_flag=True,
    help="Take damaged arrays out of service and delete damaged search files; their facts wait for `neuraldb solve`.",
)
@opt.wait
@opt.as_json
def verify(db: Path, deep: bool, repair: bool, wait: float, as_json: bool) -> None:
    """Check a database for damage; the exit code is 1 where something is wrong and --repair did not mend it."""
    from neuraldb_faiss import integrity
    from neuraldb_faiss.store import Store

    def check(deep: bool) -> tuple[list[Any], int, int]:
        store = Store(db)
        try:
            with progress("reading every byte" if deep else "checking"):
                problems = integrity.check(store, deep=deep)
            last = store.catalog.generations()[-1]
            return problems, last.generation, last.facts
        finally:
            store.close()

    found, generation, number = check(deep or repair)
    if not as_json:
        for one in found:
            click.echo(f"{plain(one.file)}: {plain(one.what)}")
    affected: list[StoredFact] = []
    quarantined: tuple[str, ...] = ()
    problems = found
    if repair and found:
        with progress("repairing"):
            done = integrity.repair(db, wait=wait)
        affected, quarantined = list(done.facts), done.quarantined
        problems, generation, number = check(True)
    if as_json:
        emit_json(
            {
                "path": str(db),
                "generation": generation,
                "deep": deep or repair,
                "ok": not problems,
                "problems": [{"file": one.file, "what": one.what, "segment": one.segment} for one in found],
                **({"quarantined": list(quarantined), "affected": [f.id for f in affected]} if repair else {}),
            }
        )
    elif repair and found:
        for fact in affected:
            click.echo(fact_line(fact))
        if quarantined:
            click.echo(f"quarantined: {', '.join(quarantined)}; {count(len(affected), 'fact')} lost their vectors")
    if problems:
        left = f"{db} has {count(len(problems), 'problem')}"
        raise click.ClickException(
            left if repair else f"{left}: restore it from a copy, or take what is damaged out of service with --repair"
        )
    if affected:
        say(f"{count(len(affected), 'fact')} stay silent until `neuraldb solve {db}` has made their vectors anew")
    if not as_json:
        how = "every byte is as it was written" if deep or repair else "structure and sizes are right"
        click.echo(f"ok: {count(number, 'fact')} at generation {generation}, {how}")
