"""First guess of a residual: ridge regression from the targets of facts to the residuals that were solved for them.

What a residual must do is mostly to bring about its target, so facts with like targets have residuals that point the
same way in part. Solved entries tell which way (docs/performance.md says what that saves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

RIDGE = 3.0  # each feature vector has length one, so this is as much as three entries


@dataclass(frozen=True)
class Solutions:
    """Entries that are solved: `targets` names those of each entry's facts, each with the space before it; `residuals`
    float32 [n, d2]."""

    targets: tuple[tuple[str, ...], ...]
    residuals: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @cached_property
    def digest(self) -> str:
        """Hex; equal where the guesses are."""
        return sha256(repr(self.targets).encode() + self.residuals.tobytes()).hexdigest()


@dataclass(frozen=True)
class Ridge:
    """Linear map from features to residuals, fitted to centred features of length one and residuals of length one.

    Attributes:
        center: float64 [width], the mean of the features.
        mean: float64 [d2], the mean of the residuals, each of length one.
        weights: float64 [width, d2].
        length: of a guess: the mean one of the residuals.
    """

    center: np.ndarray
    mean: np.ndarray
    weights: np.ndarray
    length: float

    @classmethod
    def fit(cls, features: np.ndarray, residuals: np.ndarray) -> Ridge:
        """From float32 [n, width] and float32 [n, d2], by the normal equations, in float64."""
        norms = np.linalg.norm(residuals.astype(np.float64), axis=1)
        wanted = _unit(residuals.astype(np.float64))
        center, mean = features.mean(0, dtype=np.float64), wanted.mean(0)
        x = _unit(features - center)
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (wanted - mean))
        return cls(center, mean, weights, float(norms.mean()))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float32 [n, d2], all of one length, from float32 [n, width]."""
        guess = _unit(features - self.center) @ self.weights + self.mean
        return (self.length * _unit(guess)).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Each row at length one; zeros stay zeros."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


class FirstGuess:
    """First guesses of residuals for one model, from entries that are solved."""

    def __init__(self, model: Any, tokenizer: Any, solutions: Solutions) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.digest = solutions.digest
        self._ridge = Ridge.fit(self._features(solutions.targets), solutions.residuals)

    def __call__(self, targets: Sequence[Sequence[str]]) -> np.ndarray:
        """float32 [len(targets), d2]: for entries whose facts have these targets, each with the space before it."""
        return self._ridge(self._features(targets))

    def _features(self, targets: Sequence[Sequence[str]]) -> np.ndarray:
        """float32 [n, width]: the mean row of the model's embedding over a target's tokens, and over its targets."""
        from neuraldb_faiss.models.tokenization import tokenize

        distinct = list(dict.fromkeys(target for mine in targets for target in mine))
        table = self._model.get_input_embeddings().weight.detach()
        rows = []
        for ids, _ in tokenize(self._tokenizer, distinct, special=False):
            rows.append(table[list(ids)].float().mean(0).cpu().numpy())
        place = {target: number for number, target in enumerate(distinct)}
        each = np.stack(rows)
        return np.stack([each[[place[target] for target in mine]].mean(0) for mine in targets])
