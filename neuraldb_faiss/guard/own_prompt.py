"""Check that the guard finds each fact's subject at the key's token in the fact's own prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neuraldb_faiss.facts import Fact
from neuraldb_faiss.guard.name_index import Subjects
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.models.tokenization import encode_all

_AT_ONCE = 512
_UTF8 = 4  # bytes a code point takes, at most


def unheard(tokenizer: Any, facts: Sequence[Fact]) -> list[int]:
    """Which of these facts can never fire under the guards that read names: their indices, ascending.

    With each prompt's own tokens, by the matcher that reads texts while a model runs: a name that the tokenizer takes
    apart, maps to unknown tokens or gives back otherwise is not found, and no key could help.

    Raises:
        ModelError: the tokenizer's decoder is not known. FactError: a subject has no token of its own.
    """
    texts = Texts.of(tokenizer)
    found: list[int] = []
    for first in range(0, len(facts), _AT_ONCE):
        part = facts[first : first + _AT_ONCE]
        heard = _heard(texts, tokenizer, part)
        found += [first + number for number in range(len(part)) if number not in heard]
    return found


def _heard(texts: Texts, tokenizer: Any, facts: Sequence[Fact]) -> set[int]:
    encoded = encode_all(tokenizer, [fact.text for fact in facts], [fact.subject_span for fact in facts])
    width = max(len(row.ids) for row in encoded)
    ids, real = np.zeros((len(facts), width), np.int64), np.zeros((len(facts), width), bool)
    for number, row in enumerate(encoded):
        ids[number, : len(row.ids)], real[number, : len(row.ids)] = row.ids, True
    names = Subjects.of(
        enumerate(fact.subject for fact in facts), lambda number: [facts[number].subject],
        spell=texts.speller(tokenizer),
    )  # fmt: skip
    starts = np.zeros(ids.shape, bool)
    starts[:, 0] = True
    nothing = np.empty((len(facts), 0), np.int64)
    tokens, entries, *_ = names.ends(texts.fold(nothing, ids, real, starts, _UTF8 * names.reach))
    ends = np.array([row.last for row in encoded])
    rows, columns = tokens // width, tokens % width
    return set(rows[(rows == entries) & (columns == ends[rows])].tolist())
