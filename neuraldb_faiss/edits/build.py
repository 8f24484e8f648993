"""Store of a new database, solved from facts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from neuraldb_faiss.edits import changes
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.options import BuildConfig, CreateOptions
from neuraldb_faiss.solver.editor import Editor
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
    index = wanted.search()
    editor = Editor.new(model, tokenizer, wanted)
    return changes.build(
        folded.facts, editor, path, drop_failed=drop_failed, index=index, report=report, command=command
    )
