"""Keys of a name by itself: where a text begins with it, where no space stands before it, and behind a single word.

A name of one word is often other tokens without the space before it ("Tesla" is two, " Tesla" one), and near the
beginning of a text every token looks otherwise than in the middle. The keys of a fact's own prompt are far from all of
that. Names of several words lie near enough: their last token has a space before it anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuraldb_faiss.index.key_tokens import as_bare
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.models.sites import FFNSite, unwrap
from neuraldb_faiss.models.tokenization import encode_all
from neuraldb_faiss.solver.keys import KeyRows, KeyRunner
from neuraldb_faiss.solver.prefixes import SEEDS

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

NEAR = 0.9  # a key is spared where another one of its entry has this cosine to it

Span = tuple[int, int]


def bare_contexts(name: str, prefixes: Sequence[str]) -> list[list[tuple[str, Span]]]:
    """Three kinds of texts that end with the name, with its span; a key is the mean over the texts of a kind."""
    kinds = [[""], ['"', f"{prefixes[0]}\n"], [f"{word} " for word in SEEDS]]
    return [[(before + name, (len(before), len(before) + len(name))) for before in kind] for kind in kinds]


def with_bare_keys(
    model: Any,
    tokenizer: Any,
    site: FFNSite,
    rows: KeyRows,
    facts: Sequence[Fact],
    prefixes: Sequence[str],
    max_tokens: int = 2048,
) -> KeyRows:
    """`rows` of `facts`, with up to three more behind each fact's own where its subject is one word.

    A kind of key is left out where another key of the fact is as near as `NEAR`, or where it is not finite. At position
    0 a fact has at most one. Arguments as for `compute_keys`.
    """
    names = list(dict.fromkeys(fact.subject for fact in facts if len(fact.subject.split()) == 1))
    if not names:
        return rows
    model = unwrap(model)
    runner = KeyRunner(model, site, max_tokens)
    with frozen(model), torch.no_grad():
        kinds = [_means(runner, tokenizer, kind) for kind in _by_kind(names, prefixes)]
    place = {name: number for number, name in enumerate(names)}
    keys, tokens, owners = [rows.keys], [rows.token], [rows.fact]
    for number, fact in enumerate(facts):
        if fact.subject not in place:
            continue
        mine = rows.fact == number
        have = list(zip(rows.keys[mine], rows.token[mine].tolist(), strict=True))
        for found, its_tokens in kinds:
            key, token = found[place[fact.subject]], int(its_tokens[place[fact.subject]])
            if all(_far(key, token, *other) for other in have):
                have.append((key, token))
                keys.append(key[None])
                tokens.append(np.array([token], np.int32))
                owners.append(np.array([number]))
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    return KeyRows(np.concatenate(keys)[order], owner[order], np.concatenate(tokens)[order])


def _by_kind(names: Sequence[str], prefixes: Sequence[str]) -> list[list[list[tuple[str, Span]]]]:
    """For every kind, for each of its texts, the text with each name."""
    each = [bare_contexts(name, prefixes) for name in names]
    return [[list(texts) for texts in zip(*kind, strict=True)] for kind in zip(*each, strict=True)]


def _means(
    runner: KeyRunner, tokenizer: Any, kind: Sequence[Sequence[tuple[str, Span]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each name, float32 [names, d1], the mean key, and int32 [names], what `key_tokens` says of it."""
    mean: np.ndarray | None = None
    first = np.full(len(kind[0]), -1, np.int64)
    for texts in kind:
        encoded = encode_all(tokenizer, [text for text, _ in texts], [span for _, span in texts])
        ids = [row.ids[: row.last + 1] for row in encoded]
        for at, keys in runner.run(ids, share=False):
            if mean is None:
                mean = np.zeros((len(ids), keys.shape[1]), np.float32)
            mean[at] += keys / np.float32(len(kind))
        first = np.array([row[0] if len(row) == 1 else -1 for row in ids])
    assert mean is not None
    return mean, as_bare(first).astype(np.int32)


def _far(key: np.ndarray, token: int, other: np.ndarray, its: int) -> bool:
    """Whether a bare key is needed beside another one, which may be at another place."""
    if not np.isfinite(key).all():
        return False
    if token != int(as_bare(np.array([its]))[0]):  # taken at other places
        return True
    return bool(key @ other < NEAR * np.linalg.norm(key) * np.linalg.norm(other))
