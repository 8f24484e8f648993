"""Keys of bare names: where they answer, to whom they yield, and who never sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.guard.folding import fold_bytes
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.subject import SubjectMatcher
from neuraldb_faiss.index import Matcher, device_matcher
from neuraldb_faiss.index.device_matcher import Candidates
from neuraldb_faiss.index.key_tokens import BARE, BARE_LATER, YIELD, as_bare, at_start, is_bare
from neuraldb_faiss.index.matcher import Best, decide

NAME = "Tesla Motors"


class OneName(FakeSnapshot):
    floors: dict[str, float] = {}
    search_folder = None

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        yield from ((1, entry, NAME) for entry in range(self.n_entries) if after < 1)

    def names(self, entry_id: int) -> tuple[str, ...]:
        return (NAME,)

    def stamp_of(self, generation: int) -> None:
        return None


def at(cosine: float) -> np.ndarray:
    return np.array([cosine, np.sqrt(1 - cosine**2), 0.0])


QUERY = np.array([[1.0, 0.0, 0.0]])
CODES, CASES, ENDS = fold_bytes(NAME.encode())
TEXT = Folded(CODES, CASES, np.zeros(len(ENDS), np.int64))


def answer(keys: list[tuple[float, int]], first: int = -1, gamma: float = 0.45) -> int:
    """The key, of (cosine, key_tokens), that answers at a token; -1 for none."""
    source: Any = OneName(np.stack([at(cosine) for cosine, _ in keys]), tokens=np.array([token for _, token in keys]))
    matches = SubjectMatcher(source, gamma=gamma).match(torch.from_numpy(QUERY), TEXT, np.array([first]))
    return int(matches.entry_ids[0]) if matches.fired[0] else -1


def test_codes_tell_position_and_whether_the_name_stands_alone() -> None:
    tokens = np.array([-1, 0, 7, BARE, BARE + 7, BARE_LATER])
    assert is_bare(tokens).tolist() == [False, False, False, True, True, True]
    assert at_start(tokens).tolist() == [False, True, True, True, True, False]
    unknown = np.iinfo(np.int64).max
    assert as_bare(np.array([-1, 0, 7, unknown])).tolist() == [BARE_LATER, BARE, BARE + 7, unknown]
    assert np.array([BARE_LATER, BARE + 7]).astype(np.int32).tolist() == [BARE_LATER, BARE + 7]


@pytest.mark.parametrize(
    ("keys", "first", "winner"),
    [
        ([(0.3, -1), (0.9, BARE_LATER)], -1, 1),  # the prompt's key is too far
        ([(0.9, BARE_LATER), (0.9 - YIELD + 0.01, -1)], -1, 1),  # near enough: the prompt's key knows more
        ([(0.9, BARE_LATER), (0.9 - YIELD - 0.01, -1)], -1, 0),
        ([(0.9, BARE_LATER), (0.9, BARE_LATER)], -1, 0),  # equals: the older fact
        ([(0.9, BARE + 7), (0.9, 7)], 7, 1),
        ([(0.9, BARE + 7)], 7, 0),
        ([(0.9, BARE + 7)], 8, -1),
        ([(0.9, BARE + 7)], -1, -1),
        ([(0.9, BARE_LATER)], 7, -1),
        ([(0.4, BARE_LATER)], -1, -1),
        ([(0.44, -1), (0.46, BARE_LATER)], -1, 1),  # what does not pass the gate itself keeps nobody away
    ],
)
def test_who_answers(keys: list[tuple[float, int]], first: int, winner: int) -> None:
    assert answer(keys, first) == winner


def test_the_plain_gate_never_sees_them() -> None:
    keys = np.stack([at(0.5), at(0.9), at(0.8)])
    matcher = Matcher(FakeSnapshot(keys, tokens=np.array([-1, BARE_LATER, BARE + 7])), gamma=0.1)
    for first in (None, np.array([-1])):
        assert matcher.match(QUERY, first_tokens=first, exact=True).entry_ids.tolist() == [0]
    assert matcher.match(QUERY, first_tokens=np.array([7])).entry_ids.tolist() == [-1]
    only = Matcher(FakeSnapshot(keys[1:], tokens=np.array([BARE_LATER, BARE + 7])), gamma=0.1)
    assert only.match(QUERY).entry_ids.tolist() == [-1]


@settings(max_examples=60, deadline=None)
@given(seed=some.integers(0, 2**31), n=some.integers(1, 12))
def test_the_device_decides_as_the_host_does(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    source = FakeSnapshot(rng.standard_normal((6, 3)))
    rows = np.sort(rng.integers(0, 4, n))
    positions = rng.integers(0, 6, n)
    pairs = np.unique(np.stack([rows, positions], 1), axis=0)
    rows, positions = pairs[:, 0], pairs[:, 1]
    floors, behind = rng.choice([0.0, 0.5], len(rows)), rng.choice([0.0, YIELD, 0.5], len(rows))
    queries = rng.standard_normal((4, 3))
    best = Best.none(4)
    high = np.maximum(floors, 0.1 + 1e-12)
    decide(source, queries, rows, positions, best, high, behind)
    told = device_matcher.decide(
        Candidates(rows, positions, floors, source, behind),
        torch.from_numpy(queries),
        0.1,
    )
    fires = told.fires.numpy()
    assert {(int(r), int(p)) for r, p in zip(rows[fires], positions[fires], strict=True)} == {
        (row, int(best.positions[row])) for row in range(4) if best.positions[row] >= 0
    }
