"""The demonstration: a real small model, two dozen edits, its answers before and after, and a new process."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.create import build
from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.errors import NeuralDBError, StoreError
from neuraldb_faiss.facts import Fact, read_facts
from neuraldb_faiss.facts.fact import fold_space
from neuraldb_faiss.inference.ask import Answer, ask
from neuraldb_faiss.store import schema
from neuraldb_faiss.store.lock import writer_lock
from neuraldb_faiss.store.store import remove_database

if TYPE_CHECKING:
    from neuraldb_faiss.edits.pipeline import Report

SHOWN = 12
NEW_TOKENS = 8


@dataclass(frozen=True)
class Shown:
    """One edit: answers to its prompt, to a paraphrase, and to a prompt that must not change."""

    fact: Fact
    own: Answer
    paraphrase: Answer | None
    neighbour: Answer | None

    @property
    def edited(self) -> bool:
        return says(self.own.edited, self.fact.target)

    @property
    def paraphrase_edited(self) -> bool:
        return self.paraphrase is not None and says(self.paraphrase.edited, self.fact.target)

    @property
    def neighbour_same(self) -> bool:
        return self.neighbour is not None and self.neighbour.edited == self.neighbour.base


@dataclass(frozen=True)
class Check:
    """A command that a new process ran, and whether it found what the first process left."""

    command: str
    result: str
    holds: bool


def says(continuation: str, target: str) -> bool:
    """Whether the continuation begins with the target."""
    return continuation.strip().casefold().startswith(target.strip().casefold())


def demo_database(
    facts_file: Path, out: Path, model: Any, tokenizer: Any, *, fresh: bool, report: Report | None = None
) -> tuple[NeuralDB, bool]:
    """The demo's database at `out`, and whether it was there already.

    One that the demo made of the same facts is used again. One that it made of other facts, and that nobody
    changed since, is replaced; any other only with `fresh`.

    Raises:
        StoreError: `out` holds something that is not replaced.
    """
    command = f"demo {hashlib.sha256(facts_file.read_bytes()).hexdigest()[:12]}"
    old = _finished(out)
    if old is not None and not fresh:
        first, *later = old.history()
        if first.command == command and not later and _fits(old, model):
            return old, True
        if not first.command.startswith("demo ") or later:
            raise StoreError(f"{out} is not as the demo made it: replace it with --fresh, or name another --out")
    if old is not None:
        old.close()
    if old is not None or fresh:
        _remove(out)
    facts = list(read_facts(facts_file))
    return build(facts, model, tokenizer, out, report=report, command=command), False


def _finished(out: Path) -> NeuralDB | None:
    if not (out / schema.NAME).exists():
        return None
    try:
        return NeuralDB.open(out)
    except StoreError:
        return None  # an unfinished build goes on, and anything else is refused, by `build`


def _fits(db: NeuralDB, model: Any) -> bool:
    try:
        with db.attach(model):
            return True
    except NeuralDBError:
        return False


def _remove(out: Path) -> None:
    if not out.exists():
        return
    if not (out / schema.NAME).is_file():
        if any(out.iterdir()):
            raise StoreError(f"{out} is no database: it is not removed. Name another folder with --out")
        return
    with writer_lock(out, "demo --fresh", wait=0):
        remove_database(out)


def selection(facts: Sequence[Fact], number: int = SHOWN) -> list[Fact]:
    """Some facts to show, in their order: two about one subject among them, then the first."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fold_space(fact.subject), []).append(fact)
    pair = next((found[:2] for found in by_subject.values() if len(found) > 1), [])
    chosen = {fact.identity for fact in pair}
    for fact in facts:
        if len(chosen) < number:
            chosen.add(fact.identity)
    return [fact for fact in facts if fact.identity in chosen]


def show(db: NeuralDB, model: Any, tokenizer: Any, facts: Sequence[Fact]) -> Iterator[Shown]:
    """Each fact's answers, one after the other: greedy, NEW_TOKENS long."""

    def answer(prompt: str | None) -> Answer | None:
        if prompt is None:
            return None
        return ask(db, handle, model, tokenizer, prompt, compare=True, max_new_tokens=NEW_TOKENS)

    with db.attach(model, tokenizer) as handle:
        for fact in facts:
            own = ask(db, handle, model, tokenizer, fact.text, compare=True, max_new_tokens=NEW_TOKENS)
            yield Shown(fact, own, answer(_first(fact, "paraphrase")), answer(_first(fact, "neighborhood")))


def _first(fact: Fact, kind: str) -> str | None:
    prompts = fact.metadata.get(f"{kind}_prompts") or [None]
    return prompts[0]


def in_new_process(out: Path, model_dir: Path, live: Sequence[Fact], shown: Sequence[Shown]) -> Iterator[Check]:
    """Commands run by new processes, against what this one has seen.

    Args:
        live: the facts that must be in the database. shown: answers that must come again.
    """
    command: list[str | Path] = ["verify", out, "--deep", "--json"]
    report = _run(command)
    text = "every byte is as it was written" if report["ok"] else f"{len(report['problems'])} problems"
    yield Check(_typed(command), text, report["ok"])

    command = ["facts", out, "--json"]
    found = {(fact["id"], fact["target"]) for fact in _run(command)}
    lost = {(fact.id, fact.target) for fact in live} - found
    yield Check(_typed(command), f"{len(found)} facts, {len(lost)} lost", not lost)

    for one in shown:
        command = ["generate", out, one.fact.text, "--model", model_dir, "--json"]
        command += ["--max-new-tokens", str(NEW_TOKENS)]
        answer = _run(command)["edited"]
        yield Check(_typed(command[:3]), answer, answer == one.own.edited)


def _run(arguments: Sequence[str | Path]) -> Any:
    """What the command prints as JSON. UTF-8 both ways: a prompt need not be text of the locale."""
    words = [os.fsencode(word) if isinstance(word, Path) else word.encode() for word in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "neuraldb_faiss.cli", *words],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    try:
        return json.loads(done.stdout)
    except ValueError:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise NeuralDBError(f"a new process failed: {lines[-1].removeprefix('Error: ')}") from None


def _typed(arguments: Sequence[str | Path]) -> str:
    """The command as a person would type it."""
    words = [str(word) for word in arguments if word != "--json"]
    return " ".join(["neuraldb", *(f'"{word}"' if " " in word else word for word in words)])
