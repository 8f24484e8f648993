"""Codes in `key_tokens`: was a key taken at position 0 of its text, and did the name stand alone?

    -1            taken behind other tokens, in the fact's own prompt
    t             taken at position 0, on token t: all first tokens have nearly the same key, so only t tells them apart
    BARE + t      the same, for the name alone and not for the fact's prompt
    BARE_LATER    taken on the name alone, behind other tokens

Keys of a bare name answer where the fact's own prompt is far: at the beginning of a text, behind one word, without a
space before. They are the same for all facts about the name, so they yield to keys that know more (`YIELD`), and only
guards that read the name ask for them: to the plain gate they would be nothing but more keys to come near to.
"""

from __future__ import annotations

import numpy as np

BARE = 1 << 30
BARE_LATER = (1 << 31) - 1
YIELD = 0.05  # a bare name's key must be so much nearer than a prompt's key to win


def is_bare(tokens: np.ndarray) -> np.ndarray:
    """bool [n], of int [n]."""
    return tokens >= BARE


def at_start(tokens: np.ndarray) -> np.ndarray:
    """bool [n], of int [n]: taken at position 0."""
    return (tokens >= 0) & (tokens != BARE_LATER)


def as_bare(tokens: np.ndarray) -> np.ndarray:
    """int64 [n]: what bare keys have where others have these (-1 or a token; ids that no vocabulary has stay)."""
    tokens = np.asarray(tokens, np.int64)
    return np.where(tokens < 0, BARE_LATER, np.where(tokens < BARE, tokens + BARE, tokens))
