"""What commands load before they work: models, fact files, databases with their models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.output import say, warn
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.facts import BadRecord, Fact, Folded, fold, read_facts

if TYPE_CHECKING:
    from neuraldb_faiss import NeuralDB

SHOWN = 10  # bad records that are named; the rest are counted


@dataclass(frozen=True)
class Input:
    """Facts read from files: folded, with the number of bad records that were left out."""

    folded: Folded
    skipped: int


def load_facts(
    sources: Sequence[str],
    format_: str,
    *,
    limit: int | None,
    on_conflict: Any,
    skip_bad: bool,
    shard: tuple[int, int] | None = None,
) -> Input:
    """Read, slice and fold. `limit` counts over all sources, before the slice is taken."""
    from neuraldb_faiss.facts.shard import shard as slice_of

    skipped = 0

    def on_bad(record: BadRecord) -> None:
        nonlocal skipped
        skipped += 1
        if skipped <= SHOWN:
            warn(f"skipped: {record}")

    def read() -> Iterator[Fact]:
        for source in sources:
            yield from read_facts(source, format_, limit=limit, on_bad=on_bad if skip_bad else None)

    facts: Iterator[Fact] = islice(read(), limit)
    folded = fold(facts if shard is None else slice_of(facts, *shard), on_conflict)
    if skipped > SHOWN:
        warn(f"skipped: {skipped - SHOWN} more")
    return Input(folded, skipped)


def load_model(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """The model and its tokenizer, without the libraries' own bars and hints."""
    say(f"loading {name}")
    from transformers.utils import logging as their_logging

    from neuraldb_faiss.models import load_model as load

    their_logging.disable_progress_bar()
    their_logging.set_verbosity_error()
    return load(name, device=device, dtype=dtype)


def model_of(db: NeuralDB, name: str | None, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """The model named, or else the one that the database was built with.

    Raises:
        ModelError: no name was given and none is recorded, or the model cannot be loaded.
    """
    if name is None:
        name = db.config.model_name
        if name is None:
            raise ModelError(f"{db.path} does not record where its model is: name it with --model")
        if Path(name).is_absolute() and not Path(name).exists():
            raise ModelError(f"the model of {db.path} is no longer at {name}: name it with --model")
    return load_model(name, device, dtype)
