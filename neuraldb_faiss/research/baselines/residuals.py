"""Residuals of many facts, each solved once: kept on disk in pieces, so that methods share them and a killed run
goes on.

A residual is known by the model's fingerprint, the layer, all settings of the solver, the fact's own words, and
what had been written into the model before it was solved.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuraldb_faiss.edits.pipeline import Progress, Report
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.research.baselines import arrays
from neuraldb_faiss.solver.editor import Editor

PIECE = 16  # facts solved between two writes

UNEDITED = "unedited"

_LOG = logging.getLogger(__name__)

Solve = Callable[[Sequence[Fact]], Sequence[tuple[np.ndarray, float]]]


class Residuals:
    """Solves facts and remembers them; `losses` of all facts asked for so far, in their order."""

    def __init__(self, editor: Editor, folder: str | Path | None, total: int, report: Report | None) -> None:
        self.editor = editor
        self.losses: list[float] = []
        self._folder = None if folder is None else Path(folder)
        self._total, self._report = total, report
        self._done = self._resumed = 0
        self._fresh: list[float] = []
        self._places: dict[str, tuple[str, dict[str, Any], int]] = {}
        if self._folder is not None:
            for name, record in arrays.records(self._folder):
                for row, key in enumerate(record["facts"]):
                    self._places[key] = (name, record, row)

    def of(self, facts: Sequence[Fact], state: str = UNEDITED, solve: Solve | None = None) -> np.ndarray:
        """float32 [len(facts), d2], one residual a fact, solved on the model as it is now.

        Args:
            state: names what was written into the model so far (see `after`).
            solve: another way to solve than the editor's; the editor's digest must decide its results.

        Raises:
            BuildError: a loss is not finite. StoreError, CorruptError: of the folder.
        """
        keys = [self._key(fact, state) for fact in facts]
        found = self._load(keys)
        self._resumed += len(found)
        self._tell(len(found))
        missing = list({key: fact for key, fact in zip(keys, facts, strict=True) if key not in found}.items())
        for start in range(0, len(missing), PIECE):
            piece = missing[start : start + PIECE]
            solved = (solve or self._solve)([fact for _, fact in piece])
            found.update(zip((key for key, _ in piece), solved, strict=True))
            self._save([key for key, _ in piece], solved)
            self._fresh += [loss for _, loss in solved]
            self._tell(len(piece))
        self.losses += [found[key][1] for key in keys]
        return np.stack([found[key][0] for key in keys])

    def _solve(self, facts: Sequence[Fact]) -> list[tuple[np.ndarray, float]]:
        # Each fact by itself, as the reference codes do, also where two have the same key.
        return [(one.residual, float(one.loss or 0.0)) for one in self.editor.make_residuals([[f] for f in facts])]

    def _key(self, fact: Fact, state: str) -> str:
        words = json.dumps([fact.text, fact.subject_span, fact.target])
        return hashlib.sha256(f"{self.editor.digest()} {state} {words}".encode()).hexdigest()[:32]

    def _load(self, keys: Sequence[str]) -> dict[str, tuple[np.ndarray, float]]:
        found: dict[str, tuple[np.ndarray, float]] = {}
        pieces: dict[str, np.ndarray] = {}
        for key in keys:
            if key in self._places and self._folder is not None:
                name, record, row = self._places[key]
                if name not in pieces:
                    pieces[name] = arrays.load(self._folder, name, record)
                found[key] = (np.array(pieces[name][row]), float(record["losses"][row]))
        return found

    def _save(self, keys: Sequence[str], solved: Sequence[tuple[np.ndarray, float]]) -> None:
        if self._folder is None:
            return
        name = hashlib.sha256(" ".join(keys).encode()).hexdigest()[:32]
        stacked = np.stack([residual for residual, _ in solved]).astype(np.float32)
        arrays.save(self._folder, name, stacked, {"facts": list(keys), "losses": [loss for _, loss in solved]})

    def _tell(self, more: int) -> None:
        self._done += more
        if self._report is not None and more:
            mean = float(np.mean(self._fresh)) if self._fresh else None
            self._report(Progress(self._done, self._total, self._resumed, mean))


def after(state: str, *written: Any) -> str:
    """The name of what a model holds once `written` (JSON values) was added to `state`."""
    return hashlib.sha256(f"{state} {json.dumps(written, sort_keys=True)}".encode()).hexdigest()[:32]
