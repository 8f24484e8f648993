"""Token ids as the bytes they stand for, so that names can be found in a text as it is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.search.folding import fold_bytes
from neuraldb_faiss.search.subjects import Folded

BREAK = b"\0"  # special tokens, and what stands between two texts
UNSEEN = b"a"  # left context that is not known: no name may begin right behind it, as none does inside a word
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_known: WeakKeyDictionary[Any, Texts] = WeakKeyDictionary()


class Texts:
    """A tokenizer's vocabulary as bytes; `Texts.of` makes one a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises ModelError for a tokenizer without a fast (Rust) backend."""
        self._bytes = _vocabulary(tokenizer)
        self._lengths = np.array([len(one) for one in self._bytes], np.int64)

    @classmethod
    def of(cls, tokenizer: Any) -> Texts:
        if tokenizer not in _known:
            _known[tokenizer] = cls(tokenizer)
        return _known[tokenizer]

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
        return self._bytes[token] if 0 <= token < len(self._bytes) else BREAK

    def _context(self, context: np.ndarray, reach: int) -> tuple[bytes, Iterator[bytes]]:
        """What stands before the last tokens that hold `reach` bytes, and those tokens."""
        inside = (context >= 0) & (context < len(self._bytes))
        lengths = np.where(inside, self._lengths[np.where(inside, context, 0)], 1)
        behind = np.cumsum(lengths[::-1])[::-1]  # bytes from each token to the end
        first = int(np.searchsorted(-behind, -reach, side="right")) - 1
        window = context[max(first, 0) :].tolist()
        lead = UNSEEN if first > 0 else BREAK
        return lead, (UNSEEN if token == -2 else self._piece(token) for token in window)


def _vocabulary(tokenizer: Any) -> list[bytes]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(f"{type(tokenizer).__name__} is a slow tokenizer: load the model's fast one (use_fast=True)")
    whole = json.loads(backend.to_str())
    decoders = whole["decoder"] or {}
    kinds = {one["type"] for one in (decoders.get("decoders") or [decoders]) if one}
    to_bytes = _bytes_of_bytelevel if "ByteLevel" in kinds else _bytes_of_pieces
    table = [BREAK] * (max(tokenizer.get_vocab().values(), default=-1) + 1)
    for text, number in tokenizer.get_vocab().items():
        table[number] = to_bytes(text)
    for number, added in tokenizer.added_tokens_decoder.items():
        table[number] = BREAK if added.special else added.content.encode()
    return table


def _bytes_of_pieces(text: str) -> bytes:
    """SentencePiece's: a low line for a space, <0x0A> for a byte."""
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()


def _bytelevel_alphabet() -> dict[str, int]:
    """GPT-2's letters for the 256 bytes: those that print stand for themselves, the rest follow from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + n): byte for n, byte in enumerate(rest)}}


_ALPHABET = _bytelevel_alphabet()


def _bytes_of_bytelevel(text: str) -> bytes:
    try:
        return bytes(_ALPHABET[char] for char in text)
    except KeyError:  # an added token, written as it is
        return text.encode()
