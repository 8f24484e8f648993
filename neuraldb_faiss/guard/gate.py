"""Gate interface: the tokens it receives, the result it returns, and how to make one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.guard.registry import REGISTRY
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.matcher import Matcher, Matches
from neuraldb_faiss.models.loading import tokenizer_of

UNKNOWN = -2  # in `Tokens.past`: a token that went into the KV cache before the database was attached


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one forward.

    Attributes:
        positions: int64 [B, T], from 0 at each text's first token, padding not counted.
        real: bool [B, T], False at padding; None where there is none.
        ids: int64 [B, T]; None where the model was given embeddings.
        known: False where nothing said where the tokens stand; positions are then columns.
        past: int64 [B, P], ids of the tokens in the KV cache before these, -1 for padding, UNKNOWN for those that went
            in unseen.
        ends: int64 [B], tokens of each row's prompt, those in `past` counted and padding not; None where nothing said
            (`models.prompt_ends`).
    """

    positions: np.ndarray
    real: np.ndarray | None
    ids: np.ndarray | None
    known: bool
    past: np.ndarray
    ends: np.ndarray | None = None

    def first_tokens(self) -> np.ndarray:
        """int64 [B, T] for the matcher: the id of a text's first token, else -1.

        A first token whose id is not known gets one that no key has, so that it fires nothing.
        """
        if not self.known:
            return np.full(self.positions.shape, -1, np.int64)
        ids = np.iinfo(np.int64).max if self.ids is None else self.ids
        return np.where(self.positions == 0, ids, -1)


@dataclass(frozen=True, slots=True)
class Fired:
    """The tokens of one forward that fire.

    Attributes:
        places: int64 [m], indices into the flattened [B, T] tokens, padding counted.
        entries: int64 [m], the entry that fires at each.
        scores: float32 [m], the exact cosines.
        source: the snapshot that answered.
    """

    places: np.ndarray
    entries: np.ndarray
    scores: np.ndarray
    source: EntrySource

    @classmethod
    def of(cls, matches: Matches, places: np.ndarray | None) -> Fired:
        """The rows of `matches` that fire. places: int64 [rows], each row's token; None where every token has a row."""
        rows = np.flatnonzero(matches.fired.numpy())
        entries, scores = matches.entry_ids.numpy()[rows], matches.scores.numpy()[rows]
        return cls(rows if places is None else places[rows], entries, scores, matches.source)


class Gate(Protocol):
    """Decides which tokens of a forward fire, and with which entry.

    guard: the name of its kind. wants_past: whether it reads `Tokens.past`.
    """

    guard: str
    wants_past: bool

    @property
    def gamma(self) -> float: ...
    @property
    def source(self) -> EntrySource: ...
    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        """What fires. keys: [B * T, d1], any dtype and device. tokens: of [B, T]. Waits for keys that lie on a GPU."""

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        """The keys that may fire, to be decided on the GPU; None where only `fired` can answer.

        keys: [B * T, d1] on a GPU. tokens: called once the GPU has work to do.
        """

    def refresh(self, source: Any) -> None:
        """Answer from another snapshot."""


def make_gate(
    guard: str, gamma: float, source: Any, model: Any, tokenizer: Any, *, plain: Callable[[float], Matcher]
) -> Gate:
    """The gate of a guard kind over one snapshot.

    Args:
        guard: a name in `registry.REGISTRY`.
        gamma: the cosine that must be exceeded.
        source: the snapshot (`subject.NamedSource`).
        model, tokenizer: guards but "none" read text with `tokenizer`, or with the one that lies beside the model;
            where there is none, a warning says that the plain gate takes its place; none does that of a guard whose
            entries fire where answers begin.
        plain: makes the plain gate's matcher for a gamma. A guard uses it for forwards without token ids, with a gamma
            that is never below the default of the guard "none".

    Raises:
        ConfigError: an unknown guard. ModelError: it cannot read this tokenizer, or needs one and there is none.
    """
    kind, none = REGISTRY[guard], REGISTRY["none"]
    if kind.reads_text and tokenizer is None:
        tokenizer = tokenizer_of(model)
        if tokenizer is None and kind.place != none.place:
            raise ModelError(
                f"the guard {guard} reads prompts, and no tokenizer was given or lies beside the model: pass"
                " attach(model, tokenizer)"
            )
        if tokenizer is None:
            warnings.warn(
                "no tokenizer was given and none lies beside the model: the plain cosine gate is used instead of the"
                f" guard {guard}; pass attach(model, tokenizer)", stacklevel=4,
            )  # fmt: skip
            kind, gamma = none, max(gamma, none.gamma)
    unguarded = gamma if kind.name == "none" else max(gamma, none.gamma)
    return kind.load()(source, gamma, tokenizer if kind.reads_text else None, partial(plain, unguarded))
