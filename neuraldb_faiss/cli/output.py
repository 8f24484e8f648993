"""How things are printed: data to stdout, messages and progress to stderr."""

from __future__ import annotations

import codecs
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from neuraldb_faiss.edits.pipeline import Progress
    from neuraldb_faiss.store import StoredFact

LOG_EVERY = 5.0  # seconds between two progress lines where there is no terminal
QUIET = 1.5  # seconds without a first one, after which a line says what is done
PLAIN_WIDTH = 100


def never_fail_on_text() -> None:
    r"""Make stdout and stderr take any text: the locale does not end a command that has done its work.

    UTF-8 where the encoding is ASCII, which says only that nobody chose one (locale C); elsewhere the encoding stays,
    and what it lacks is written as an escape ("\\u4f26").
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            ascii_only = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if ascii_only else None, errors="backslashreplace")


def _as_json(value: Any, indent: int | None = None) -> str:
    """JSON that stdout can hold: its own escapes where the encoding is not UTF-8, whose escapes are not JSON's."""
    utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    return json.dumps(value, ensure_ascii=not utf8, indent=indent)


_logs: list[Callable[[str, str], None]] = []


@contextmanager
def messages_to(log: Callable[[str, str], None]) -> Iterator[None]:
    """Inside of the block what `say` and `warn` are given goes to `log`, with its level, "info" or "warning"."""
    _logs.append(log)
    try:
        yield
    finally:
        _logs.pop()


def say(message: str) -> None:
    """A message for people, on stderr."""
    if _logs:
        _logs[-1]("info", message)
    else:
        click.echo(message, err=True)


def warn(message: str) -> None:
    if _logs:
        _logs[-1]("warning", message)
    else:
        click.secho(f"warning: {message}", fg="yellow", err=True)


def emit_json(value: Any) -> None:
    click.echo(_as_json(value, indent=2))


def emit_json_list(values: Iterable[Any]) -> None:
    """A JSON list, an item a line, without holding all of it."""
    first = True
    for value in values:
        click.echo("[" if first else ",", nl=first)
        if not first:
            click.echo()
        click.echo(_as_json(value), nl=False)
        first = False
    click.echo("[]" if first else "\n]")


def plain(text: str) -> str:
    """On one line, without characters that would drive a terminal: a database's texts may be anyone's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def clip(text: str, width: int) -> str:
    text = plain(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def console() -> Console:
    """Rich on stdout: colours in a terminal, plain text of a fixed width elsewhere."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def key_values(values: Mapping[str, Any]) -> None:
    width = max(map(len, values))
    for name, value in values.items():
        click.echo(f"{name.ljust(width)}  {plain(str(value))}")


@contextmanager
def progress(doing: str, noun: str = "fact") -> Iterator[Callable[[Progress], None]]:
    """What to report progress to: a bar in a terminal, a line now and then elsewhere. `noun`: what is counted."""
    if sys.stderr.isatty():
        with _bar(doing, noun) as report:
            yield report
    else:
        with _lines(doing, noun) as report:
            yield report


@contextmanager
def _bar(doing: str, noun: str) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeElapsedColumn(),
    )
    started: float | None = None
    with rich.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(doing, total=None, rate="")

        def report(now: Progress) -> None:
            nonlocal started
            started = time.monotonic() if started is None else started
            bar.update(task, total=now.total, completed=now.done, rate=_rate(now, time.monotonic() - started, noun))

        yield report


@contextmanager
def _lines(doing: str, noun: str) -> Iterator[Callable[[Progress], None]]:
    """The first report is a line, so is the first that knows a rate, then one every LOG_EVERY seconds, and the last.
    Where nothing is reported for QUIET seconds, a line says at least what is done."""
    started: float | None = None  # the first report: what was before is not the facts' time
    last, shown, rated = 0.0, -1, False

    def report(now: Progress) -> None:
        nonlocal started, last, shown, rated
        silence.cancel()
        moment = time.monotonic()
        begun, started = started is not None, moment if started is None else started
        first_rate = now.done > now.resumed and not rated
        if (begun and not (first_rate or moment - last >= LOG_EVERY or now.done == now.total)) or now.done == shown:
            return
        last, shown, rated = moment, now.done, rated or first_rate
        say(f"{doing}: {now.done:,} of {count(now.total, noun)}{_rate(now, moment - started, noun)}")

    with slow(doing) as silence:
        yield report


@contextmanager
def slow(doing: str) -> Iterator[threading.Timer]:
    """Say what is done where the block takes longer than QUIET seconds; the timer may be cancelled."""
    timer = threading.Timer(QUIET, say, [f"{doing} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def _rate(now: Progress, seconds: float, noun: str) -> str:
    """Items a second and the time left, over what this run did itself; and the mean loss."""
    if now.done == now.resumed or seconds <= 0:
        return ""  # not known yet
    rate = (now.done - now.resumed) / seconds
    left = f", {duration((now.total - now.done) / rate)} left" if now.done < now.total else ""
    loss = "" if now.loss is None else f", mean loss {now.loss:.3f}"
    return f", {rate:.2g} {noun}s/s{left}{loss}" if rate < 10 else f", {rate:,.0f} {noun}s/s{left}{loss}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def fact_line(fact: StoredFact) -> str:
    """A fact on one line: id, text, target, and what is odd about it."""
    notes = (("waiting", fact.state != "live"), ("failed", fact.took is False))
    odd = ", ".join(note for note, holds in notes if holds)
    shown = f"{plain(fact.id)}  {plain(fact.text)} → {plain(fact.target)}"
    return f"{shown}  ({odd})" if odd else shown


def fact_summaries(facts: tuple[StoredFact, ...]) -> list[dict[str, str]]:
    return [{"id": f.id, "subject": f.subject, "prompt": f.prompt, "target": f.target} for f in facts]


def print_generation(done: Any, as_json: bool, sentence: str) -> None:
    if as_json:
        emit_json(done.to_dict())
    else:
        click.echo(sentence)
