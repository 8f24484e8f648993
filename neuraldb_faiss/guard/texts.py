"""Text of token ids, folded for finding names while it is generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from neuraldb_faiss.guard.folding import fold_bytes
from neuraldb_faiss.guard.name_index import Folded, Speller
from neuraldb_faiss.guard.token_bytes import BREAK, respells, token_bytes

UNSEEN = b"a"  # left context that is not known: no name may begin right behind it, as none does inside a word
_known: WeakKeyDictionary[Any, Texts] = WeakKeyDictionary()


class Texts:
    """A tokenizer's vocabulary as bytes, `table`; `Texts.of` makes one a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError for a tokenizer without a fast (Rust) backend, or with a decoder that is not known."""
        self.table = token_bytes(tokenizer)
        self._lengths = np.array([len(one) for one in self.table], np.int64)
        self._respells = respells(tokenizer)

    @classmethod
    def of(cls, tokenizer: Any) -> Texts:
        if tokenizer not in _known:
            _known[tokenizer] = cls(tokenizer)
        return _known[tokenizer]

    def speller(self, tokenizer: Any) -> Speller | None:
        """How names are spelled in a text that is read from the tokens of `tokenizer`, whose texts these are: "" for
        one that tokens cannot say. None where that is as they are written.

        Most tokenizers give every text back as it was. Others lose case or accents, or put white space around signs
        and Chinese characters.
        """
        if not self._respells:
            return None

        def spell(names: Sequence[str]) -> list[str]:
            rows = tokenizer(list(names), add_special_tokens=False, verbose=False)["input_ids"] if names else []
            return [self.read(row) for row in rows]

        return spell

    def read(self, ids: Sequence[int]) -> str:
        """What the guard reads in these tokens, white space folded; "" where one of them says nothing."""
        data = b"".join(map(self._piece, ids))
        return "" if BREAK in data else " ".join(data.decode("utf-8", "replace").split())

    def written(self, ids: Sequence[int]) -> str:
        """What these tokens say, to the letter; a line break for each that says nothing."""
        data = b"".join(b"\n" if piece == BREAK else piece for piece in map(self._piece, ids))
        return data.decode("utf-8", "replace")

    def fold(self, past: np.ndarray, ids: np.ndarray, real: np.ndarray, starts: np.ndarray, reach: int) -> Folded:
        """The texts of one forward, one behind the other; a token's number is its place in `ids`, flattened.

        Args:
            past: int64 [B, P], the tokens before these, -1 for padding, -2 for what is not known.
            ids: int64 [B, T]. real: bool [B, T], False at padding. starts: bool [B, T], True at a text's first token.
            reach: how many bytes of the left context matter.
        """
        data: list[bytes] = []
        owners: list[np.ndarray] = []
        for row, context in enumerate(past):
            lead, before = self._context(context[context != -1], reach)
            columns = np.flatnonzero(real[row])
            cuts = starts[row, columns]
            parts = [lead, *before]
            marks = [np.full(sum(map(len, parts)), -1, np.int64)]
            if cuts[1:].any():  # several texts packed into one row
                for column, cut in zip(columns, cuts, strict=True):
                    piece = self._piece(int(ids[row, column]))
                    parts += [BREAK, piece] if cut else [piece]
                    marks.append(np.r_[[-1] * bool(cut), np.full(len(piece), row * ids.shape[1] + column)])
            else:
                pieces = [self._piece(token) for token in ids[row, columns].tolist()]
                parts += pieces
                marks.append(np.repeat(row * ids.shape[1] + columns, [len(piece) for piece in pieces]))
            data += parts
            owners += marks
        codes, cases, ends = fold_bytes(b"".join(data))
        numbers = np.concatenate(owners).astype(np.int64) if owners else np.empty(0, np.int64)
        return Folded(codes, cases, numbers[ends])

    def _piece(self, token: int) -> bytes:
        return self.table[token] if 0 <= token < len(self.table) else BREAK

    def _context(self, context: np.ndarray, reach: int) -> tuple[bytes, Iterator[bytes]]:
        """What stands before the last tokens that hold `reach` bytes, and those tokens."""
        inside = (context >= 0) & (context < len(self.table))
        lengths = np.where(inside, self._lengths[np.where(inside, context, 0)], 1)
        behind = np.cumsum(lengths[::-1])[::-1]  # bytes from each token to the end
        first = int(np.searchsorted(-behind, -reach, side="right")) - 1
        window = context[max(first, 0) :].tolist()
        lead = UNSEEN if first > 0 else BREAK
        return lead, (UNSEEN if token == -2 else self._piece(token) for token in window)
