"""The guard "none": the paper's plain cosine gate, which reads no text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.guard.gate import Fired, Tokens
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.matcher import Matcher


class PlainGate:
    """The nearest key of all by cosine, where that exceeds gamma (eq. 11)."""

    guard = "none"
    wants_past = False

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self._warned = False

    @property
    def gamma(self) -> float:
        return self._matcher.gamma

    @property
    def source(self) -> EntrySource:
        return self._matcher.source

    def refresh(self, source: EntrySource) -> None:
        self._matcher.refresh(source)

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        if not self._matcher.on_gpu:
            return None

        def first_tokens() -> tuple[np.ndarray, np.ndarray]:
            known = tokens()
            self._warn(known)
            first = known.first_tokens().reshape(-1)
            return np.ones(len(first), bool) if known.real is None else known.real.reshape(-1), first

        return self._matcher.candidates(keys, first_tokens)

    def _warn(self, tokens: Tokens) -> None:
        if tokens.ids is None and not self._warned:
            self._warned = True
            warnings.warn(
                "the edited layer runs without token ids (inputs_embeds, or the layer called by itself): "
                "facts fire by the cosine gate alone, those at a text's first token never; pass input_ids",
                stacklevel=3,
            )

    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        self._warn(tokens)
        kept = None if tokens.real is None else np.flatnonzero(tokens.real)
        rows = keys if kept is None else keys[torch.from_numpy(kept).to(keys.device)]
        first = tokens.first_tokens().reshape(-1)
        return Fired.of(self._matcher.match(rows, first_tokens=first if kept is None else first[kept]), kept)


def make(source: Any, gamma: float, tokenizer: Any, plain: Callable[[], Matcher]) -> PlainGate:
    """The gate of the guard "none" (`registry.GuardKind.target`)."""
    return PlainGate(plain())
