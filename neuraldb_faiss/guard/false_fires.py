"""Measurement of false fires in ordinary text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from neuraldb_faiss.guard.gate import Gate, Tokens
from neuraldb_faiss.models import FFNSite
from neuraldb_faiss.models.batching import pad
from neuraldb_faiss.models.interventions import capture
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.models.tokenization import tokenize
from neuraldb_faiss.store import Snapshot

BATCH_TOKENS = 4096
NOWHERE = -1.0  # the score of a token that no entry may fire at


@dataclass(frozen=True)
class Seen:
    """One text as the edited layer sees it.

    text: what was tokenised. ids: int64 [T]. spans: int64 [T, 2], each token's characters. keys: float32 [T, d1].
    """

    text: str
    ids: np.ndarray
    spans: np.ndarray
    keys: np.ndarray

    def tokens(self) -> Tokens:
        rows = self.ids[None]
        return Tokens(np.arange(len(self.ids))[None], None, rows, True, np.empty((1, 0), np.int64))


def see(model: Any, tokenizer: Any, site: FFNSite, texts: Iterable[str], *, special: bool = True) -> Iterator[Seen]:
    """Run texts up to the edited layer, a batch of like lengths at a time, in the order given."""
    device = input_device(unwrap(model))
    for batch in _batches(texts, tokenizer, special):
        rows, mask = pad([ids for _, ids, _ in batch], left=False, device=device)
        with torch.no_grad():
            hidden = capture(model, site.module, rows, mask).float().cpu().numpy()
        for row, (text, ids, spans) in enumerate(batch):
            yield Seen(text, np.array(ids, np.int64), np.array(spans, np.int64), hidden[row, : len(ids)])


def windows(tokenizer: Any, texts: Iterable[str], *, size: int, tokens: int) -> Iterator[str]:
    """Running text cut at token borders into pieces of `size` tokens, until `tokens` are handed out."""
    left = tokens
    for text in texts:
        ((_, spans),) = tokenize(tokenizer, [text], special=False)
        for first in range(0, max(1, len(spans) - size // 8), size):  # a short rest tells little
            if not (part := spans[first : first + size]):
                continue
            yield text[part[0][0] : part[-1][1]]
            left -= len(part)
            if left <= 0:
                return


def _batches(texts: Iterable[str], tokenizer: Any, special: bool) -> Iterator[list[tuple[str, list[int], Any]]]:
    batch: list[tuple[str, list[int], Any]] = []
    for text in texts:
        ((ids, spans),) = tokenize(tokenizer, [text], special=special)
        widest = max([len(ids), *(len(ids) for _, ids, _ in batch)])
        if batch and widest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append((text, list(ids), spans))
    if batch:
        yield batch


def scores(gate: Gate, seen: Seen) -> tuple[np.ndarray, np.ndarray]:
    """What `gate`, made with gamma 0, would fire: entries int64 [T] (-1: none), cosines float64 [T] (NOWHERE)."""
    fired = gate.fired(torch.from_numpy(seen.keys), seen.tokens())
    entries, cosines = np.full(len(seen.ids), -1, np.int64), np.full(len(seen.ids), NOWHERE)
    entries[fired.places], cosines[fired.places] = fired.entries, fired.scores
    return entries, cosines


def subject_end(seen: Seen, subject: str) -> int:
    """The token that holds the last character of the subject's last occurrence."""
    stop = seen.text.rindex(subject) + len(subject)
    return int(np.flatnonzero((seen.spans[:, 0] < stop) & (seen.spans[:, 1] >= stop))[0])


class PlainScan:
    """The nearest of the first so many entries' keys for every token, for several numbers at once: brute force."""

    def __init__(self, snapshot: Snapshot, limits: Sequence[int]) -> None:
        """limits: numbers of entries, ascending."""
        entries = np.asarray(snapshot.key_entries)
        ids = np.unique(entries)
        self._blocks: list[tuple[int, np.ndarray, np.ndarray]] = []
        body = (np.asarray(snapshot.key_tokens) < 0) & snapshot.live
        low = -1
        for number, limit in enumerate(limits):
            high = ids[min(limit, len(ids)) - 1]
            at = np.flatnonzero(body & (entries > low) & (entries <= high))
            for first in range(0, len(at), 16_384):
                part = at[first : first + 16_384]
                keys = snapshot.keys(part).astype(np.float32)
                keys /= np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-9)
                self._blocks.append((number, keys, entries[part]))
            low = high
        self._limits = len(limits)

    def scores(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """keys: [T, d1]. Returns entries int64 and cosines float32, [limits, T]."""
        unit = keys / np.maximum(np.linalg.norm(keys, axis=1, keepdims=True), 1e-9)
        best = np.full((self._limits, len(keys)), -2, np.float32)
        entries = np.full((self._limits, len(keys)), -1, np.int64)
        for number, block, owners in self._blocks:
            cosines = unit @ block.T
            at = cosines.argmax(axis=1)
            found = cosines[np.arange(len(keys)), at]
            better = found > best[number:]
            best[number:] = np.where(better, found, best[number:])
            entries[number:] = np.where(better, owners[at], entries[number:])
        return entries, best


class Named(Protocol):
    """What knows the names of entries: a snapshot."""

    def names(self, entry: int) -> Sequence[str]: ...


class Truth:
    """Whether an entry's subject, or an alias, really ends at a token: as words of their own, letter for letter but for
    a capital at the beginning and the white space between words."""

    def __init__(self, source: Named) -> None:
        self._source = source
        self._patterns: dict[int, list[tuple[int, re.Pattern[str]]]] = {}

    def __call__(self, seen: Seen, token: int, entry: int) -> bool:
        if entry not in self._patterns:
            self._patterns[entry] = [(len(name), _pattern(name)) for name in self._source.names(entry)]
        start, stop = (int(place) for place in seen.spans[token])
        for length, pattern in self._patterns[entry]:
            first = max(0, start - 2 * length - 8)
            found = pattern.finditer(seen.text, first, stop + length)
            if any(start < match.end() <= stop for match in found):
                return True
        return False


def _pattern(name: str) -> re.Pattern[str]:
    first, *rest = name.split()
    head = f"[{re.escape(first[0])}{re.escape(first[0].upper())}]{re.escape(first[1:])}"
    words = r"\s+".join([head, *map(re.escape, rest)])
    return re.compile(rf"(?<!\w){words}(?!\w)")
