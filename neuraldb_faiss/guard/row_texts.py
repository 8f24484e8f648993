"""The texts that the rows of one forward hold, with what went into the KV cache before."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from neuraldb_faiss.guard.gate import Tokens


class RowText(NamedTuple):
    """One text as far as it is known.

    Attributes:
        ids: its tokens. past: how many of them went in before this forward. columns: int64, of the others.
    """

    ids: list[int]
    past: int
    columns: np.ndarray


class RowTexts:
    """The texts of one row: one, or several that are packed into it."""

    def __init__(self, tokens: Tokens, row: int) -> None:
        """tokens: with ids."""
        assert tokens.ids is not None
        real = slice(None) if tokens.real is None else np.flatnonzero(tokens.real[row])
        past = tokens.past[row]
        self._past = past[past != -1].tolist()
        self._columns = np.arange(tokens.ids.shape[1])[real]
        self._ids = tokens.ids[row, real].tolist()
        self._starts = np.flatnonzero(tokens.positions[row, real] == 0)

    def __iter__(self) -> Iterator[RowText]:
        cuts = [0, *self._starts[self._starts > 0].tolist(), len(self._ids)]
        for start, stop in pairwise(cuts):
            if start < stop:
                yield self._text(start, stop)

    def around(self, column: int) -> tuple[list[int], int]:
        """The tokens of the text that a column belongs to, as far as they are known, and its place among them."""
        at = int(np.searchsorted(self._columns, column))
        first = int(np.searchsorted(self._starts, at, side="right"))
        start = int(self._starts[first - 1]) if first else 0
        stop = int(self._starts[first]) if first < len(self._starts) else len(self._ids)
        text = self._text(start, stop)
        return text.ids, text.past + at - start

    def _text(self, start: int, stop: int) -> RowText:
        begins = bool(np.isin(start, self._starts))
        past = [] if begins else self._past
        return RowText([*past, *self._ids[start:stop]], len(past), self._columns[start:stop])
