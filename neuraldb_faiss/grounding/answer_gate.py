"""The guard "answer": an entry fires once, at the last token of a prompt that asks for what it says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from neuraldb_faiss.grounding.ground import Conversation, Grounder
from neuraldb_faiss.guard.gate import Fired, Tokens
from neuraldb_faiss.guard.named import Named
from neuraldb_faiss.guard.row_texts import RowText, RowTexts
from neuraldb_faiss.guard.subject import NamedSource
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.turns import Turns
from neuraldb_faiss.index.base import EntrySource
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.matcher import as_rows
from neuraldb_faiss.index.vectors import exact_cosines


class AnswerGate:
    """The entry of the fact that a prompt asks for, at the prompt's last token; the cosine has no part in it.

    In a chat that is where the template opens an answer, each of several. A text to be continued ends where the model
    is told so (`models.prompt_ends`), else with the forward that begins it. Of several facts that are asked for, that
    of the subject named last fires. While the answer is written nothing does.
    """

    guard = "answer"
    wants_past = True
    gamma = 0.0

    def __init__(self, source: NamedSource, texts: Texts, turns: Turns) -> None:
        self._view = source, Grounder(source)
        self._texts, self._turns = texts, turns
        self._warned = False

    @property
    def source(self) -> NamedSource:
        return self._view[0]

    def refresh(self, source: NamedSource) -> None:
        self._view = source, self._view[1].at(source)  # a forward that runs goes on with what it has

    def candidates(self, keys: torch.Tensor, tokens: Callable[[], Tokens]) -> Candidates | None:
        return None

    def fired(self, keys: torch.Tensor, tokens: Tokens) -> Fired:
        source, grounder = self._view
        pairs: list[tuple[int, int]] = []
        for place, prompt in self._prompts(tokens):
            asked = (fact for fact in grounder.asked(prompt) if fact.state == "live")
            pairs += [(place, fact.entry) for fact in islice(asked, 1)]
        places, entries = np.array(pairs, np.int64).reshape(-1, 2).T
        return Fired(places, entries, _cosines(source, keys, places, entries), source)

    def named(self, keys: torch.Tensor, tokens: Tokens) -> list[Named]:
        """The entries whose subjects a prompt names, at its last token, and why they do not fire
        (`guard.named.NamesSubjects`)."""
        source, grounder = self._view
        found: list[tuple[int, int, str | None]] = []
        for place, prompt in self._prompts(tokens):
            found += [(place, fact.entry, reason) for fact, reason in grounder.named(prompt)]
        places, entries = (np.array([one[at] for one in found], np.int64) for at in (0, 1))
        scores = _cosines(source, keys, places, entries).tolist()
        return [
            Named(place, entry, score, self.gamma, reason)
            for (place, entry, reason), score in zip(found, scores, strict=True)
        ]

    def _prompts(self, tokens: Tokens) -> Iterator[tuple[int, str | Conversation]]:
        """Every prompt that ends in this forward: its last token, an index into the flattened [B, T], and what it
        says."""
        if tokens.ids is None:
            self._warn("the edited layer runs without token ids (inputs_embeds): no fact fires; pass input_ids")
            return
        width = tokens.ids.shape[1]
        for row in range(len(tokens.ids)):
            if not self._may_end(tokens, row):
                continue
            told = None if tokens.ends is None else int(tokens.ends[row])
            for text in RowTexts(tokens, row):
                for end, prompt in self._ends(text, told):
                    if end > text.past:
                        yield row * width + int(text.columns[end - 1 - text.past]), prompt

    def _may_end(self, tokens: Tokens, row: int) -> bool:
        """False where no prompt of this row ends in this forward, as a look at its last tokens tells: while an answer
        is written, that is all that is done."""
        assert tokens.ids is not None
        if (tokens.positions[row] == 0).any():
            return True
        if tokens.ends is not None and tokens.ends[row] > np.count_nonzero(tokens.past[row] != -1):
            return True
        reach = len(self._turns.opening)
        return bool(reach) and not self._turns.marks.isdisjoint(
            [*tokens.past[row, -reach:].tolist(), *tokens.ids[row].tolist()]
        )

    def _ends(self, text: RowText, told: int | None) -> Iterator[tuple[int, str | Conversation]]:
        """How many of its tokens each prompt of a text has, and what it says."""
        turns = self._turns.split(text.ids)
        if len(turns) == 1:
            end = told if told is not None else None if text.past else len(text.ids)
            if end is not None and 0 < end <= len(text.ids):
                yield end, self._texts.written(text.ids[:end])
            return
        for number, turn in enumerate(turns):
            if turn.kind == "answer":
                said = self._turns.messages(text.ids, turns[:number], self._texts.written)
                if said:
                    yield turn.start, said

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(text, stacklevel=4)


def _cosines(source: EntrySource, keys: torch.Tensor, places: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """float32 [m]: the best exact cosine of each place's key with the entry's keys."""
    best = np.full(len(places), -1.0)
    if len(places):
        asked, which = np.unique(places, return_inverse=True)
        positions = np.flatnonzero(np.isin(source.key_entries, entries))
        pairs = [(n, at) for n, entry in enumerate(entries) for at in positions[source.key_entries[positions] == entry]]
        pair, position = np.array(pairs, np.int64).reshape(-1, 2).T
        rows = as_rows(keys[torch.from_numpy(asked).to(keys.device)])
        np.maximum.at(best, pair, exact_cosines(source, rows, which[pair], position))
    return best.astype(np.float32)


def make(source: Any, gamma: float, tokenizer: Any, plain: Any) -> AnswerGate:
    """The gate of the guard "answer" (`registry.GuardKind.target`)."""
    return AnswerGate(source, Texts.of(tokenizer), Turns.of(tokenizer))
