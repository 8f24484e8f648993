"""Store of a new database, solved from facts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

from neuraldb_faiss.config import DELIVERIES, DatabaseConfig, check_choice
from neuraldb_faiss.edits import changes
from neuraldb_faiss.edits.unsolved import Unsolved
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.index.registry import checked
from neuraldb_faiss.options import BuildConfig, CreateOptions
from neuraldb_faiss.store import Store


def build_store(
    facts: Iterable[Fact], model: Any, tokenizer: Any, path: str | Path, config: BuildConfig | None,
    options: CreateOptions,
) -> Store:  # fmt: skip
    """Fold the facts, solve them and publish them at `path`; see `neuraldb_faiss.build`."""
    rest = options.copy()
    on_conflict, drop_failed = rest.pop("on_conflict", "error"), rest.pop("drop_failed", False)
    report, command = rest.pop("report", None), rest.pop("command", "build")
    wanted = BuildConfig.of(config, rest)
    folded = fold(facts, on_conflict)
    index = checked(wanted.search())
    if model is None:
        editor: Any = unsolved(wanted)
    else:
        from neuraldb_faiss.solver.editor import Editor

        editor = Editor.new(model, tokenizer, wanted)
    return changes.build(
        folded.facts, editor, path, drop_failed=drop_failed, index=index, report=report, command=command
    )


def unsolved(wanted: BuildConfig) -> Unsolved:
    """What stores facts without a model.

    Raises:
        BuildError: a setting asks for what only a model can make.
        ConfigError: an unknown delivery.
    """
    plain = BuildConfig(residual=wanted.residual, seed=wanted.seed, index=wanted.index, delivery=wanted.delivery)
    given = [one.name for one in fields(BuildConfig) if getattr(wanted, one.name) not in (None, (), [])]
    odd = [name for name in given if getattr(wanted, name) != getattr(plain, name)]
    if wanted.residual not in ("none", BuildConfig.residual):
        odd.append("residual")
    if wanted.search().kind != "flat":
        odd.append("index")
    if wanted.delivery in ("residual", "both"):
        odd.append("delivery")
    if odd:
        raise BuildError(
            f"without a model there is nothing to solve or to search: leave {odd[0]} out (it is"
            f" {getattr(wanted, odd[0])!r}), or name a model"
        )
    return Unsolved.new(check_choice("delivery", wanted.delivery, DELIVERIES))


def kept_settings(config: DatabaseConfig) -> BuildConfig:
    """What a database that is made anew for another model keeps of its settings."""
    if not config.has_model:
        return BuildConfig(delivery=config.delivery)
    return BuildConfig(residual=config.residual, keys=config.keys, guard=config.guard, delivery=config.delivery)
