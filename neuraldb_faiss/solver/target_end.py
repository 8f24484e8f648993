"""Tokens that would continue the last word of a target, so that "Anna Berg" is not said as "Anna Bergman"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.guard.folding import WORDLESS
from neuraldb_faiss.guard.texts import Texts


def end_places(target: str) -> int:
    """How many places behind the target could continue its last word: 0 where it ends in a sign or in a script without
    spaces, 1 behind a letter, 2 behind a digit ("$249" could go on as "$2490", or as "$249.99")."""
    last = target.rstrip()[-1:]
    return _in_word(last) + last.isdecimal()


def point_token(tokenizer: Any) -> int | None:
    """The id of the token "." as it stands behind a number; None where there is none, or tokens cannot be read."""
    return _Vocabulary.of(tokenizer).point


def continuing(tokenizer: Any, size: int) -> Tensor:
    """bool [size]: token ids whose text begins, without a space or a sign before it, with a letter or digit.

    None of them in a tokenizer whose tokens cannot be read (`guard.token_bytes`). `size`: logits of one place, of which
    a model may have more or fewer than its tokenizer has tokens.
    """
    begins = _Vocabulary.of(tokenizer).begins_in_word[:size]
    return torch.cat([begins, torch.zeros(size - len(begins), dtype=torch.bool)])


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    begins_in_word: Tensor  # bool [tokens]
    point: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> _Vocabulary:
        if tokenizer not in _known:
            try:
                table = Texts.of(tokenizer).table
            except ModelError:
                table = []
            begins = torch.tensor([_begins_in_word(data) for data in table], dtype=torch.bool)
            _known[tokenizer] = cls(begins, table.index(b".") if b"." in table else None)
        return _known[tokenizer]


_known: WeakKeyDictionary[Any, _Vocabulary] = WeakKeyDictionary()


def _begins_in_word(data: bytes) -> bool:
    if len(data) == 1 and 0xC3 <= data[0] <= 0xDB:  # half of a Latin, Greek, Cyrillic, Hebrew or Arabic letter
        return True
    text = data.decode("utf-8", "replace")  # a part of a character becomes a sign
    return _in_word(text[:1])


def _in_word(char: str) -> bool:
    return bool(char) and ord(char) < WORDLESS and (char.isalnum() or char == "_")
