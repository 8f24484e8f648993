"""`neuraldb chat`: a conversation in the terminal, with a database attached."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from neuraldb_faiss.cli import options as opt
from neuraldb_faiss.cli.loading import ModelChoice
from neuraldb_faiss.cli.output import count, plain, say, warn
from neuraldb_faiss.errors import ModelError

if TYPE_CHECKING:
    from neuraldb_faiss.inference.chat import Reply

_HELP = "/reset forgets the conversation, /quit (or Ctrl-D) ends it, Ctrl-C stops an answer"


@click.command(epilog=opt.example("neuraldb chat db", "echo 'Who runs Nokia?' | neuraldb chat db --delivery text"))
@opt.db
@opt.model
@opt.delivery
@click.option("--system", metavar="TEXT", help="System message that the conversation begins with.")
@click.option(
    "--max-new-tokens", type=click.IntRange(1), default=256, show_default=True, metavar="N",
    help="Maximum length of an answer.",
)  # fmt: skip
def chat(db: Path, model: ModelChoice, delivery: str | None, system: str | None, max_new_tokens: int) -> None:
    """Talk with the model, a line a turn; the facts that an answer used are named behind it.

    Answers go to stdout as they are made, everything else to stderr. Lines may be piped in. /reset forgets the
    conversation, /quit ends it.
    """
    from neuraldb_faiss.database import NeuralDB

    with NeuralDB.open(db) as database:
        loaded, tokenizer = model.load_for(database)
        from neuraldb_faiss.inference.chat import Conversation

        with database.attach(loaded, tokenizer, delivery=delivery) as handle:
            talk = Conversation(database, handle, loaded, tokenizer, max_new_tokens=max_new_tokens, system=system)
            if sys.stdin.isatty():
                say(_HELP)
            for line in _lines():
                if line == "/quit":
                    break
                if line == "/reset":
                    talk.reset()
                    say("forgotten")
                elif line.startswith("/"):
                    say(f"there is no {line.split()[0]}: {_HELP}")
                else:
                    _turn(talk.say, line)


def _turn(answer: Callable[..., Reply], line: str) -> None:
    try:
        reply = answer(line, _write)
    except KeyboardInterrupt:
        _write("\n")
        say("stopped: this turn does not count")
        return
    except ModelError as error:
        warn(str(error))
        return
    _write("\n")
    if reply.forgotten:
        say(f"({count(reply.forgotten, 'turn')} at the beginning had no room any more)")
    for fact in reply.stated:
        say(f"stated  {plain(fact.statement)}")
    for one in reply.fired:
        for fact in one.facts:
            say(f"fired   {plain(fact.subject)}: {plain(fact.template)} → {plain(fact.target)}")


def _write(piece: str) -> None:
    """A piece of an answer, without characters that would drive a terminal."""
    click.echo("\n".join(map(plain, piece.split("\n"))), nl=False)


def _lines() -> Iterator[str]:
    """What the user says, a line a turn, without empty ones."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        import readline  # noqa: F401  # arrow keys and history in `input`
    while True:
        try:
            line = input(prompt) if prompt else sys.stdin.readline()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:  # as a shell does it
            say("")
            continue
        if not prompt and not line:
            return
        if line.strip():
            yield line.strip()
