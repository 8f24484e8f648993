"""Names that end at the tokens of a text, and which of them longer names hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Ends(NamedTuple):
    """Names that end at tokens, by token and entry.

    Attributes:
        tokens, entries: int64 [n]. floors: float64 [n], the cosine asked for; infinite where only its case keeps a name
            from counting.
        longer: by a name's token and entry those of the longer names of other entries that hold it and go on behind it,
            as "Xbox 360" does behind "Xbox".
    """

    tokens: np.ndarray
    entries: np.ndarray
    floors: np.ndarray
    longer: Mapping[tuple[int, int], frozenset[tuple[int, int]]]


class Stretch(NamedTuple):
    """codes[start:stop] of a text is a name of an entry. ends: whether no word is known to go on behind it."""

    start: int
    stop: int
    entry: int
    floor: float
    ends: bool


def by_token(found: Sequence[Stretch], tokens: np.ndarray) -> Ends:
    """What is found in a text, by the tokens that complete its code points (int64 [n])."""
    floors: dict[tuple[int, int], float] = {}
    longer: dict[tuple[int, int], frozenset[tuple[int, int]]] = {}
    around: list[Stretch] = []
    for one in sorted(found, key=lambda stretch: (stretch.start, -stretch.stop)):
        pair = int(tokens[one.stop - 1]), one.entry
        floors[pair] = min(one.floor, floors.get(pair, one.floor))
        around = [other for other in around if other.stop > one.start]
        beyond = {(int(tokens[o.stop - 1]), o.entry) for o in around if o.stop > one.stop and o.entry != one.entry}
        if beyond:
            longer[pair] = longer.get(pair, frozenset()) | beyond
        if one.ends and np.isfinite(one.floor):
            around.append(one)
    pairs = sorted(floors)
    numbers = np.array(pairs, np.int64).reshape(-1, 2)
    return Ends(numbers[:, 0], numbers[:, 1], np.array([floors[pair] for pair in pairs], np.float64), longer)
