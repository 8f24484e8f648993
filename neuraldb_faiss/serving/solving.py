"""Editors of a server: they leave the model free after each entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.solver.editor import Edited, Editor


def pausing_editor(config: DatabaseConfig, model: Any, tokenizer: Any, solved: Callable[[int], None]) -> Editor:
    """What solves the entries of a database. solved: called after each, with the number of its facts; where it raises,
    the change ends."""
    editor = _Pausing.of(config, model, tokenizer)
    assert isinstance(editor, _Pausing)
    return replace(editor, solved=solved)


@dataclass(frozen=True)
class _Pausing(Editor):
    """An editor that solves one entry after the other, and says so in between."""

    solved: Callable[[int], None] = lambda facts: None

    def make_residuals(self, groups: Sequence[Sequence[Fact]], *, prefixed: bool = True) -> list[Edited]:
        edited: list[Edited] = []
        for group in groups:
            edited += super().make_residuals([group], prefixed=prefixed)
            self.solved(len(group) if prefixed else 0)
        return edited
