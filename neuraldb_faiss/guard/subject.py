"""Guard "subject": an entry may fire only where the text ends with its subject; the cosine decides among those."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from neuraldb_faiss.config import check_gamma
from neuraldb_faiss.guard.asking import Asking, HoldsBack
from neuraldb_faiss.guard.ends import Ends
from neuraldb_faiss.guard.entry_facts import FactSource
from neuraldb_faiss.guard.gate import UNKNOWN, Fired, Tokens
from neuraldb_faiss.guard.name_files import subjects_of
from neuraldb_faiss.guard.name_index import Folded, Speller, Subjects
from neuraldb_faiss.guard.named import CASE, FLOOR, GAMMA, LONGER, NEARER, PLACE, WAITS, WORD, Named
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.turns import Turns
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.key_tokens import YIELD, as_bare
from neuraldb_faiss.index.matcher import Best, Matcher, Matches, as_rows, decide
from neuraldb_faiss.index.vectors import exact_cosines, unit_rows

UTF8 = 4  # bytes a code point takes, at most


class NamedSource(EntrySource, FactSource, Protocol):
    """A snapshot that also knows its entries' facts, and what their subjects are called."""


@dataclass(frozen=True, slots=True)
class _View:
    """One generation. `upto`: the last generation whose names `subjects` has. `positions`: the keys in the order of
    their entries, which are `entries`."""

    source: NamedSource
    subjects: Subjects
    upto: int
    entries: np.ndarray
    positions: np.ndarray | None  # None: the keys lie in that order

    @classmethod
    def of(cls, source: NamedSource, spell: Speller | None, before: _View | None = None) -> _View:
        """`before`, of the same lineage, lends its names: within one they are only ever added to."""
        subjects, upto = subjects_of(source, spell, (before.subjects, before.upto) if before else None)
        entries = np.asarray(source.key_entries)
        if (entries[1:] >= entries[:-1]).all():
            return cls(source, subjects, upto, entries, None)
        order = np.argsort(entries, kind="stable")
        return cls(source, subjects, upto, entries[order], order)

    def keys_of(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(which of `entries`, key position) for every key of each."""
        first = np.searchsorted(self.entries, entries, "left")
        counts = np.searchsorted(self.entries, entries, "right") - first
        which = np.repeat(np.arange(len(entries)), counts)
        at = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        return which, at if self.positions is None else self.positions[at]


class SubjectMatcher:
    """Finds, for every token at which the subject of an entry ends, the nearest key of those entries.

    The names are kept hashed in files in the source's `search_folder`, so that only the first opening hashes them all.
    Any number of threads may match while one refreshes. The cost of a token hardly depends on the number of entries.
    """

    def __init__(self, source: NamedSource, *, gamma: float, spell: Speller | None = None) -> None:
        """gamma: the gate, 0 <= gamma < 1. spell: how the texts spell names, where not as the source does; it then
        reads every name when this is made. Raises SearchError for a gamma out of range."""
        self.gamma = check_gamma(gamma)
        self._spell = spell
        self._view = _View.of(source, spell)

    @property
    def source(self) -> NamedSource:
        """The snapshot that answers now."""
        return self._view.source

    @property
    def reach(self) -> int:
        """Code points of left context that can matter."""
        return self._view.subjects.reach

    def refresh(self, source: NamedSource) -> None:
        """Answer from another generation; only its new names are read while the lineage is the same."""
        same = source.lineage == self._view.source.lineage
        self._view = _View.of(source, self._spell, self._view if same else None)

    def subjects_in(self, texts: Texts) -> Callable[[Sequence[int]], list[tuple[int, int]]]:
        """What finds (token, entry) of every name in a text, given its ids."""

        def found(ids: Sequence[int]) -> list[tuple[int, int]]:
            row, nothing = np.array([ids], np.int64), np.empty((1, 0), np.int64)
            text = texts.fold(nothing, row, np.ones(row.shape, bool), np.arange(row.size)[None] == 0, 0)
            return _of_ends(self._view.subjects.ends(text))

        return found

    def match(
        self, queries: torch.Tensor, text: Folded, first_tokens: np.ndarray, holds_back: HoldsBack | None = None
    ) -> Matches:
        """One row a token; where none of its names' keys passes the gate, no entry.

        Of two names of which one goes on behind the other ("Xbox", "Xbox 360") the longer one is meant: where the text
        as far as it is known holds it, and what it says is not held back, the shorter one is.

        Args:
            queries: [n, d1], the keys of the tokens.
            text: what they say; its tokens count the queries' rows.
            first_tokens: int64 [n]: as for `Matcher.match`, at a text's first token only keys taken there on the same
                token answer, and nowhere else do those.
            holds_back: asked about what would fire; where it gives a reason, the entry is out, and the next one fires.
        """
        found, yields = self._found(text, first_tokens, holds_back)
        while True:
            matches = self._nearest(queries, found)
            held = _held(matches, yields)
            if not held:
                return matches
            found = found.only([pair not in held for pair in _pairs(found)])

    def _nearest(self, queries: torch.Tensor, found: Candidates) -> Matches:
        """The nearest of these keys to each query."""
        rows, positions, source = found.rows, found.positions, found.source
        floors = np.maximum(found.floors, np.nextafter(self.gamma, 1.0))  # what cannot fire must not win
        entries = np.full(len(queries), -1, np.int64)
        scores = np.zeros(len(queries), np.float64)
        if len(rows):
            # Only these keys ever leave the device the model is on.
            asked, place = np.unique(rows, return_inverse=True)
            wide = as_rows(queries[torch.from_numpy(asked).to(queries.device)])
            usable = unit_rows(wide)[1][place]
            best = Best.none(len(asked))
            parts = (part[usable] for part in (floors, found.behind))
            decide(source, wide, place[usable], positions[usable], best, *parts)
            entries[asked], scores[asked] = best.entries(source), best.scores
        return Matches(
            torch.from_numpy(entries),
            torch.from_numpy(scores.astype(np.float32)),
            torch.from_numpy((entries >= 0) & (scores > self.gamma)),
            source,
        )

    def candidates(self, text: Folded, first_tokens: np.ndarray, holds_back: HoldsBack | None = None) -> Candidates:
        """The keys whose subjects end at each token; arguments as for `match`. It needs no query."""
        found, yields = self._found(text, first_tokens, holds_back)
        if yields is None:
            return found
        return found.only([yields(place, entry) is None for place, entry in _pairs(found)])

    def _found(
        self, text: Folded, first_tokens: np.ndarray, holds_back: HoldsBack | None
    ) -> tuple[Candidates, HoldsBack | None]:
        """The keys whose subjects end at each token, and what holds them back."""
        view, source = self._view, self._view.source
        ends = view.subjects.ends(text)
        which, positions = view.keys_of(ends.entries)
        rows, floors = ends.tokens[which], ends.floors[which]
        tokens, first = source.key_tokens[positions], first_tokens[rows]
        bare = tokens == as_bare(first)
        fits = source.live[positions] & (bare | (tokens == first))
        found = Candidates(rows[fits], positions[fits], floors[fits], source, np.where(bare, YIELD, 0.0)[fits])
        return found, _yielding(ends, found, holds_back) if ends.longer else holds_back

    def named(
        self, queries: torch.Tensor, text: Folded, first_tokens: np.ndarray, holds_back: HoldsBack | None = None
    ) -> list[Named]:
        """The live facts' entries whose subjects end at each token, in any case; arguments as for `match`."""
        view, source = self._view, self._view.source
        matches = self.match(queries, text, first_tokens, holds_back)
        _, yields = self._found(text, first_tokens, holds_back)
        firing = {(at, int(matches.entry_ids[at])) for at in np.flatnonzero(matches.fired.numpy()).tolist()}
        heard = set(_of_ends(view.subjects.ends(text, any_case=True)))
        rows = as_rows(queries)
        usable = unit_rows(rows)[1]
        found = []
        named = view.subjects.ends(replace(text, ahead=False), any_case=True)
        for (at, entry), floor in zip(_of_ends(named), named.floors.tolist(), strict=True):
            if not source.fact_ids(entry):
                continue  # the entry of facts that were removed
            positions = view.keys_of(np.array([entry]))[1]
            tokens, first = source.key_tokens[positions], first_tokens[at]
            fits = positions[(tokens == first) | (tokens == as_bare(first))]
            score = None
            if len(fits) and usable[at]:
                score = float(exact_cosines(source, rows, np.full(len(fits), at), fits).max())
            needed = max(self.gamma, floor) if np.isfinite(floor) else self.gamma
            reason = None
            if (at, entry) not in firing:
                if not source.live[positions].any():
                    reason = WAITS
                elif (at, entry) not in heard:
                    reason = WORD
                elif not np.isfinite(floor):
                    reason = CASE
                elif score is None:
                    reason = PLACE
                elif score <= self.gamma:
                    reason = GAMMA
                elif score < needed:
                    reason = FLOOR
                else:
                    reason = (yields(at, entry) if yields else None) or NEARER
            found.append(Named(at, entry, score, needed, reason))
        return found


def _held(matches: Matches, holds_back: HoldsBack | None) -> set[tuple[int, int]]:
    """What fires of these matches and is held back, as (token, entry)."""
    if holds_back is None:
        return set()
    firing = np.flatnonzero(matches.fired.numpy())
    pairs = zip(firing.tolist(), matches.entry_ids.numpy()[firing].tolist(), strict=True)
    return {(place, entry) for place, entry in pairs if holds_back(place, entry) is not None}


def _yielding(ends: Ends, found: Candidates, holds_back: HoldsBack | None) -> HoldsBack:
    """What holds an entry back, or makes it yield to one of a longer name that is found too and not held back."""
    there = set(_pairs(found))

    def yields(place: int, entry: int) -> str | None:
        held = holds_back(place, entry) if holds_back else None
        longer = ends.longer.get((place, entry), frozenset()) & there
        if held is None and any(holds_back is None or holds_back(*other) is None for other in longer):
            return LONGER
        return held

    return yields


def _pairs(found: Candidates) -> list[tuple[int, int]]:
    """(token, entry) of each key."""
    return list(zip(found.rows.tolist(), found.source.key_entries[found.positions].tolist(), strict=True))


def _of_ends(ends: Ends) -> list[tuple[int, int]]:
    """(token, entry) of each name."""
    return list(zip(ends.tokens.tolist(), ends.entries.tolist(), strict=True))


class SubjectGate:
    """Entries whose subject (or an alias of it) the text ends with at a token, where it asks for what they say; of
    these the nearest by cosine, where that exceeds gamma.

    Where the model is run without token ids there is no text, and the plain gate decides.
    """

    guard = "subject"
    wants_past = True

    def __init__(
        self, matcher: SubjectMatcher, texts: Texts, plain: Callable[[], Matcher], asking: Asking | None = None
    ) -> None:
        """plain: makes the matcher of the plain gate, when it is first needed. asking: tells what texts ask for; None
        where entries may fire whatever is asked."""
        self._matcher = matcher
        self._asking = asking
        self._texts = texts
        self._make_plain = plain
        self._plain: PlainGate | None = None
        self._warned = False

    @property
    def gamma(self) -> float:
        return self._matcher.gamma

    @property
    def source(self) -> NamedSource:
        return self._matcher.source

    def refresh(self, source: Any) -> None:
        self._matcher.refresh(source)
        if self._plain is not None:
            self._plain.refresh(source)

    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        if tokens.ids is None:
            return self._unguarded().fired(keys, tokens)
        text, first = self._text(tokens), tokens.first_tokens().reshape(-1)
        return Fired.of(self._matcher.match(keys, text, first, self._holds_back(tokens)), None)

    def named(self, keys: torch.Tensor, tokens: Tokens) -> list[Named]:
        """Which entries the text names, and why they do not fire (`guard.named.NamesSubjects`)."""
        text, first = self._text(tokens), tokens.first_tokens().reshape(-1)
        return self._matcher.named(keys, text, first, self._holds_back(tokens))

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        known = tokens()
        if known.ids is None:
            return self._unguarded().candidates(keys, tokens)
        text, first = self._text(known), known.first_tokens().reshape(-1)
        return self._matcher.candidates(text, first, self._holds_back(known))

    def _holds_back(self, tokens: Tokens) -> HoldsBack | None:
        return None if self._asking is None else self._asking.reading(tokens, self._matcher.source)

    def _unguarded(self) -> PlainGate:
        if self._plain is None:
            self._plain = PlainGate(self._make_plain())
            self._plain.refresh(self._matcher.source)
        return self._plain

    def _text(self, tokens: Tokens) -> Folded:
        """The text before and at these tokens."""
        assert tokens.ids is not None
        if not self._warned and (tokens.past == UNKNOWN).any():
            self._warned = True
            warnings.warn(
                "the KV cache holds tokens from before the database was attached: a subject that began among them is"
                " not seen; attach first",
                stacklevel=3,
            )
        real = np.ones(tokens.ids.shape, bool) if tokens.real is None else tokens.real
        return self._texts.fold(tokens.past, tokens.ids, real, tokens.positions == 0, UTF8 * self._matcher.reach)


def make(source: Any, gamma: float, tokenizer: Any, plain: Callable[[], Matcher]) -> SubjectGate:
    """The gate of the guard "subject" (`registry.GuardKind.target`)."""
    texts = Texts.of(tokenizer)
    matcher = SubjectMatcher(source, gamma=gamma, spell=texts.speller(tokenizer))
    return SubjectGate(matcher, texts, plain, Asking(texts, Turns.of(tokenizer), matcher.subjects_in(texts)))
