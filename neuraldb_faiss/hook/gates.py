"""What decides, at the hooked layer, which tokens fire: the paper's plain gate, or a guard on the text before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from neuraldb_faiss.config import GAMMAS
from neuraldb_faiss.guard.matcher import NamedSource, SubjectMatcher
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.hook.forward_call import Tokens
from neuraldb_faiss.hook.kv_history import UNKNOWN
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.matcher import Matcher, Matches
from neuraldb_faiss.models.loading import tokenizer_of

UTF8 = 4  # bytes a code point takes, at most


@dataclass(frozen=True, slots=True)
class Fired:
    """The tokens of one forward that fire. places: int64 [m], numbers of the tokens, padding counted. entries: int64
    [m]. scores: float32 [m], their cosines. source: the snapshot that answered."""

    places: np.ndarray
    entries: np.ndarray
    scores: np.ndarray
    source: EntrySource

    @classmethod
    def of(cls, matches: Matches, places: np.ndarray | None) -> Fired:
        """`places`: the number of each row's token; None where every token had a row."""
        rows = np.flatnonzero(matches.fired.numpy())
        entries, scores = matches.entry_ids.numpy()[rows], matches.scores.numpy()[rows]
        return cls(rows if places is None else places[rows], entries, scores, matches.source)


class Gate(Protocol):
    """guard: its name. wants_past: whether it reads `Tokens.past`."""

    guard: str
    wants_past: bool

    @property
    def gamma(self) -> float: ...
    @property
    def source(self) -> EntrySource: ...
    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        """keys: [B * T, d1], any dtype and device; tokens: of [B, T]. Waits for keys that lie on a GPU."""

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        """What may fire, for `on_device.decide`; None where only `fired` can say. keys: [B * T, d1] on a GPU. tokens:
        called when the GPU has its work."""

    def refresh(self, source: Any) -> None: ...


class _Matched:
    """What both gates are: a matcher, its gamma, its snapshot."""

    _matcher: Matcher | SubjectMatcher

    @property
    def gamma(self) -> float:
        return self._matcher.gamma

    @property
    def source(self) -> EntrySource:
        return self._matcher.source


class PlainGate(_Matched):
    """The nearest key of all by cosine, where that exceeds gamma (eq. 11)."""

    guard = "none"
    wants_past = False

    def __init__(self, matcher: Matcher) -> None:
        self._matcher: Matcher = matcher
        self._warned = False

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


class SubjectGate(_Matched):
    """Entries whose subject (or an alias of it) the text ends with at a token; of these the nearest by cosine, where
    that exceeds gamma.

    Where the model is run without token ids there is no text, and the plain gate decides.
    """

    wants_past = True

    def __init__(
        self, matcher: SubjectMatcher, texts: Texts, plain: Callable[[], Matcher], guard: str = "subject"
    ) -> None:
        """plain: makes the matcher of the plain gate, when it is first needed. guard: "subject" reads from left to
        right only. "whole-words" also looks at the next token, where the forward has it and the KV cache is empty: so
        in a prompt but for its last token, and never in what is generated."""
        self.guard = guard
        self._matcher: SubjectMatcher = matcher
        self._texts = texts
        self._make_plain = plain
        self._plain: PlainGate | None = None
        self._warned = False

    def refresh(self, source: Any) -> None:
        self._matcher.refresh(source)
        if self._plain is not None:
            self._plain.refresh(source)

    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        if tokens.ids is None:
            return self._unguarded().fired(keys, tokens)
        text = self._text(tokens)
        return Fired.of(self._matcher.match(keys, text, tokens.first_tokens().reshape(-1)), None)

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        known = tokens()
        if known.ids is None:
            return self._unguarded().candidates(keys, tokens)
        return self._matcher.candidates(self._text(known), known.first_tokens().reshape(-1))

    def _unguarded(self) -> PlainGate:
        if self._plain is None:
            self._plain = PlainGate(self._make_plain())
            self._plain.refresh(self._matcher.source)
        return self._plain

    def _text(self, tokens: Tokens) -> Folded:
        assert tokens.ids is not None
        if not self._warned and (tokens.past == UNKNOWN).any():
            self._warned = True
            warnings.warn(
                "the KV cache holds tokens from before the database was attached: a subject that began among them is"
                " not seen; attach first",
                stacklevel=3,
            )
        real = np.ones(tokens.ids.shape, bool) if tokens.real is None else tokens.real
        text = self._texts.fold(tokens.past, tokens.ids, real, tokens.positions == 0, UTF8 * self._matcher.reach)
        ahead = self.guard == "whole-words" and tokens.past.shape[1] == 0
        return replace(text, ahead=True) if ahead else text


def make_gate(
    guard: str, gamma: float, source: NamedSource, model: Any, tokenizer: Any, *, plain: Callable[[float], Matcher]
) -> Gate:
    """The gate of this guard over `source`.

    Guards but "none" read texts with `tokenizer`, or with the one that lies beside the model; where there is none, a
    warning says that the plain gate takes its place. `plain` makes the plain gate's matcher for a gamma, which is never
    below the one that suits a gate without a guard.
    """
    if guard == "none":
        return PlainGate(plain(gamma))
    unguarded = max(gamma, GAMMAS["none"])
    if tokenizer is None:
        tokenizer = tokenizer_of(model)
    if tokenizer is None:
        warnings.warn(
            "no tokenizer was given and none lies beside the model: the plain cosine gate is used instead of the"
            " subject guard; pass attach(model, tokenizer)", stacklevel=4,
        )  # fmt: skip
        return PlainGate(plain(unguarded))
    texts = Texts.of(tokenizer)
    matcher = SubjectMatcher(source, gamma=gamma, spell=texts.speller(tokenizer))
    return SubjectGate(matcher, texts, lambda: plain(unguarded), guard)
