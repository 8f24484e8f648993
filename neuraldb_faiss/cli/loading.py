"""What commands load before they work: models, fact files, and packages that only some commands need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.cli.output import say, slow, warn
from neuraldb_faiss.errors import ModelError, ServeError
from neuraldb_faiss.facts import BadRecord, Fact, Folded, fold, read_facts
from neuraldb_faiss.facts.relations import read_relations
from neuraldb_faiss.models.paths import check_model_name

if TYPE_CHECKING:
    from neuraldb_faiss import NeuralDB

NO_MODEL = "none"  # as a model's name: facts are stored to be stated, and none is solved
SHOWN = 10  # bad records that are named; the rest are counted


@dataclass(frozen=True)
class Input:
    """Facts read from files: folded, with the number of bad records that were left out."""

    folded: Folded
    skipped: int


@dataclass(frozen=True)
class FactFiles:
    """Files of facts, and how to read them.

    Attributes:
        sources: files, "-" for stdin, or datasets:NAME[:SPLIT].
        templates: a file of wordings of relations, for triples; the package's own (None).
        inline: a fact given as options, read before the sources.
        format_: one of `neuraldb_faiss.facts.FORMATS`.
        limit: facts to read over all sources, before the slice is taken.
        on_conflict: "error", "first" or "last": which target counts where a subject and prompt has several.
        skip_bad: whether bad records are left out, named and counted instead of raised.
        shard: (number, of) keeps one slice of the subjects.
    """

    sources: tuple[str, ...]
    format_: str = "auto"
    limit: int | None = None
    on_conflict: Any = "error"
    skip_bad: bool = False
    shard: tuple[int, int] | None = None
    inline: Fact | None = None
    templates: Path | None = None

    def load(self) -> Input:
        """Read, slice and fold."""
        from neuraldb_faiss.facts.shard import shard as slice_of

        skipped = 0

        def on_bad(record: BadRecord) -> None:
            nonlocal skipped
            skipped += 1
            if skipped <= SHOWN:
                warn(f"skipped: {record}")

        relations = None if self.templates is None else read_relations(self.templates)

        def read() -> Iterator[Fact]:
            if self.inline is not None:
                yield self.inline
            for source in self.sources:
                yield from read_facts(
                    source, self.format_, limit=self.limit, on_bad=on_bad if self.skip_bad else None,
                    relations=relations,
                )  # fmt: skip

        facts: Iterator[Fact] = islice(read(), self.limit)
        with slow("reading the facts"):
            folded = fold(facts if self.shard is None else slice_of(facts, *self.shard), self.on_conflict)
        if skipped > SHOWN:
            warn(f"skipped: {skipped - SHOWN} more")
        return Input(folded, skipped)

    def command(self, name: str) -> str:
        """The command as the history records it: the file names, without their folders."""
        words = [name, *(source if ":" in source else Path(source).name for source in self.sources)]
        if self.inline is not None:
            words.append(f"--subject {self.inline.subject}")
        if self.limit is not None:
            words.append(f"--limit {self.limit}")
        if self.shard is not None:
            words.append(f"--shard {self.shard[0]}/{self.shard[1]}")
        return " ".join(words)


@dataclass(frozen=True)
class ModelChoice:
    """A model to load: folder or hub name (None: the one that the database records), device, type of the weights."""

    model: str | None
    device: str | None
    dtype: str | None

    def load(self) -> tuple[Any, Any]:
        """The model named and its tokenizer; (None, None) where none is named."""
        return (None, None) if self.model is None else load_model(self.model, self.device, self.dtype)

    def load_to_solve(self, db: NeuralDB) -> tuple[Any, Any]:
        """As `load_for`; (None, None) for a database that was built without a model, which solves nothing."""
        return (None, None) if self.model is None and not db.config.has_model else self.load_for(db)

    def load_for(self, db: NeuralDB) -> tuple[Any, Any]:
        """The model named, or else the one that the database was built with, and its tokenizer.

        Raises:
            ModelError: no name was given and none is recorded, or the model cannot be loaded.
        """
        return load_model(self._name_for(db), self.device, self.dtype)

    def check(self) -> None:
        """Raise ModelError where the name that is given cannot be that of a model; nothing is imported for it."""
        if self.model is not None:
            check_model_name(self.model)

    def check_for(self, db: NeuralDB) -> None:
        """Raise as `load_for` where the name cannot be that of a model; nothing is imported for it."""
        check_model_name(self._name_for(db))

    def _name_for(self, db: NeuralDB) -> str:
        if self.model is not None:
            return self.model
        if not db.config.has_model:
            raise ModelError(f"{db.path} was built without a model: name the one that is to answer with --model")
        name = db.config.model_name
        if name is None:
            raise ModelError(f"{db.path} does not record where its model is: name it with --model")
        if Path(name).is_absolute() and not Path(name).exists():
            raise ModelError(f"the model of {db.path} is no longer at {name}: name it with --model")
        return name


def load_model(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """The model and its tokenizer, without the libraries' own bars and hints."""
    check_model_name(name)  # before the libraries are imported, which takes seconds
    say(f"loading {name}")
    from transformers.utils import logging as their_logging

    from neuraldb_faiss.models import load_model as load

    their_logging.disable_progress_bar()
    their_logging.set_verbosity_error()
    return load(name, device=device, dtype=dtype)


def require_server_packages(*more: str) -> None:
    """Raise ServeError where a package of the extra `serve` is not installed, `more` of them among others."""
    for package in ("fastapi", "prometheus_client", "uvicorn", *more):
        try:
            import_module(package)
        except ImportError as error:
            raise ServeError(f"{error.name} is not installed: pip install 'neuraldb-faiss[serve]'") from None
