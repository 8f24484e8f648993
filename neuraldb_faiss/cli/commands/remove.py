"""`neuraldb remove`: facts taken out of a database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, emit_json, emit_json_list, fact_line, progress, say
from neuraldb_faiss.errors import FactError


@dataclass(frozen=True)
class _Selection:
    """The facts to remove: those that fit everything given."""

    ids: tuple[str, ...]
    subject: str | None
    source: str | None

    def command(self) -> str:
        """The command as the history records it."""
        words = ["remove", *(f"--id {name}" for name in self.ids[:3]), *(["..."] if len(self.ids) > 3 else [])]
        named = (("subject", self.subject), ("source", self.source))
        return " ".join([*words, *(f"--{name} {value}" for name, value in named if value is not None)])


@click.command(
    epilog=opt.example("neuraldb remove db --subject 'Eiffel Tower' --dry-run", "neuraldb remove db --id paris")
)
@opt.db
@opt.bundle(
    "which",
    _Selection,
    click.option("--id", "ids", multiple=True, metavar="ID", help="The fact with this id. Repeatable."),
    click.option("--subject", help="All facts about this subject."),
    click.option("--source", metavar="NAME", help="All facts that came from this source."),
)
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@opt.model_to_solve
@opt.wait
@opt.as_json
def remove(
    db: Path, which: _Selection, dry_run: bool, model: ModelChoice, wait: float, as_json: bool
) -> None:  # fmt: skip
    """Remove facts by id, by subject or by source; given several of these, only facts that fit all.

    Facts that share an entry with a removed one do not fire until they are solved again: at once with --model, else by
    `neuraldb solve`.
    """
    if not which.ids and which.subject is None and which.source is None:
        raise click.UsageError("say which facts to remove: --id, --subject or --source")
    from neuraldb_faiss.database import NeuralDB

    ids, subject, source = list(which.ids) or None, which.subject, which.source
    with NeuralDB.open(db, "r" if dry_run else "rw") as database:
        if dry_run:
            doomed = database.doomed(ids, subject=subject, source=source)
            if as_json:
                emit_json_list(fact.to_dict() for fact in doomed)
            else:
                for fact in doomed:
                    click.echo(fact_line(fact))
                say(f"{count(len(doomed), 'fact')} would be removed")
            return
        if not database.doomed(ids, subject=subject, source=source):  # before a model is loaded
            raise FactError("nothing to remove: no live fact fits (`neuraldb facts` lists them)")
        loaded, tokenizer = model.load()
        with progress("solving what shared an entry") as report:
            done = database.remove(
                ids,
                subject=subject,
                source=source,
                model=loaded,
                tokenizer=tokenizer,
                report=report,
                wait=wait,
                command=which.command(),
            )
        waiting = database.info()["waiting"]
    if as_json:
        emit_json({**done.to_dict(), "waiting": waiting})
        return
    click.echo(f"generation {done.generation}: {count(done.removed, 'fact')} removed, {done.facts:,} left")
    if waiting:
        say(f"{count(waiting, 'fact')} shared a removed one's entry: silent until `neuraldb solve {db}`")
