"""Of every subject that a text names the gate tells whether its entry fires, and else why it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny_tokenizer
from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.named import ANOTHER, CASE, FLOOR, GAMMA, LONGER, NEARER, PLACE, WAITS, WHY, WORD, Named
from neuraldb_faiss.guard.subject import SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.whole_words import WholeWordsGate
from neuraldb_faiss.index import Matcher

GAMMA_ = 0.45
NAMES = ("Eiffel Tower", "Oslo", "Marie Curie", "Rome", "Rome", "Paris Hilton")
AXES = np.eye(8)


class Source(FakeSnapshot):
    """Key i lies along axis i."""

    floors: dict[str, float] = {}
    search_folder = None

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        yield from ((entry, entry, name) for entry, name in enumerate(NAMES) if entry > after)

    def names(self, entry_id: int) -> tuple[str, ...]:
        return (NAMES[entry_id],)


def source(**known: Any) -> Source:
    return Source(AXES[: len(NAMES)], **known)


def query(*shares: tuple[int, float]) -> np.ndarray:
    """[8], with these cosines to the keys of these entries, the rest along an axis that no key has."""
    found = sum(share * AXES[entry] for entry, share in shares)
    return found + np.sqrt(1 - sum(share**2 for _, share in shares)) * AXES[7]


def named(text: str, near: np.ndarray, given: Source | None = None, *, ahead: bool = False) -> list[Named]:
    """For a text whose every token has the query `near`."""
    words = tiny_tokenizer("bytelevel")
    ids = np.array([words(text)["input_ids"]])
    matcher = SubjectMatcher(given or source(), gamma=GAMMA_)
    starts = np.zeros(ids.shape, bool)
    starts[:, 0] = True
    nothing = np.empty((1, 0), np.int64)
    folded: Folded = Texts.of(words).fold(nothing, ids, np.ones(ids.shape, bool), starts, 400)
    first = np.full(ids.size, -1)
    first[0] = ids[0, 0]
    keys = torch.from_numpy(np.repeat(near[None], ids.size, 0)).float()
    return matcher.named(keys, replace(folded, ahead=ahead), first)


@pytest.mark.parametrize(
    ("text", "near", "reason", "score", "needed"),
    [
        ("We saw the Eiffel Tower", query((0, 0.9)), None, 0.9, GAMMA_),
        ("We saw the Eiffel Tower", query((0, 0.3)), GAMMA, 0.3, GAMMA_),
        ("They went to Oslo", query((1, 0.9)), None, 0.9, 0.85),
        ("They went to Oslo", query((1, 0.7)), FLOOR, 0.7, 0.85),
        ("they saw the eiffel tower", query((0, 0.6)), FLOOR, 0.6, 0.65),
        ("We saw the eiffel tower", query((0, 0.9)), CASE, 0.9, GAMMA_),
    ],
)
def test_a_subject_fires_or_says_why_it_does_not(
    text: str, near: np.ndarray, reason: str | None, score: float, needed: float
) -> None:
    (one,) = named(text, near)
    assert (one.reason, one.needed) == (reason, needed) and one.score == pytest.approx(score, abs=1e-3)
    assert one.why == (WHY[reason] if reason else "")


def test_of_two_facts_of_a_name_the_farther_one_yields() -> None:
    assert [(one.entry, one.reason) for one in named("Ann is in Rome", query((3, 0.6), (4, 0.7)))] == [
        (3, FLOOR), (4, FLOOR),
    ]  # fmt: skip
    assert {one.entry: one.reason for one in named("Ann is in Rome", query((3, 0.1), (4, 0.95)))} == {3: GAMMA, 4: None}


def test_nearer_names_win() -> None:
    class Twins(Source):
        def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
            yield from ((entry, entry, "Marie Curie") for entry in (0, 1) if entry > after)

        def names(self, entry_id: int) -> tuple[str, ...]:
            return ("Marie Curie",)

    found = named("We met Marie Curie", query((0, 0.6), (1, 0.7)), Twins(AXES[:2]))
    assert [(one.entry, one.reason) for one in found] == [(0, NEARER), (1, None)]


def test_a_fact_that_waits_is_told_from_one_that_is_gone() -> None:
    class Gone(Source):
        def fact_ids(self, entry_id: int) -> tuple[str, ...]:
            return ()

    live = np.array([False, True, True, True, True, True])
    (one,) = named("We saw the Eiffel Tower", query((0, 0.9)), source(live=live))
    assert one.reason == WAITS
    assert named("We saw the Eiffel Tower", query((0, 0.9)), Gone(AXES[: len(NAMES)], live=live)) == []


def test_a_key_of_another_place_does_not_answer() -> None:
    words = tiny_tokenizer("bytelevel")
    at_start = source(tokens=np.array([words("The")["input_ids"][0]] * len(NAMES)))
    (other,) = named("We saw the Eiffel Tower", query((0, 0.9)), at_start)
    assert (other.reason, other.score) == (PLACE, None)


def test_a_word_that_goes_on_is_seen_where_the_guard_looks_ahead() -> None:
    text = "Ann met Paris Hiltonson"
    assert [one.reason for one in named(text, query((5, 0.9)))] == [None]
    assert [one.reason for one in named(text, query((5, 0.9)), ahead=True)] == [WORD]


def test_a_gate_answers_for_the_tokens_of_a_forward() -> None:
    words, given = tiny_tokenizer("bytelevel"), source()
    texts = Texts.of(words)
    gate = WholeWordsGate(SubjectMatcher(given, gamma=GAMMA_), texts, lambda: Matcher(given, "flat", gamma=0.65))
    ids = np.array([words("We saw the Eiffel Tower here")["input_ids"]])
    tokens = Tokens(np.arange(ids.size)[None], None, ids, True, np.empty((1, 0), np.int64))
    keys = torch.from_numpy(np.repeat(query((0, 0.9))[None], ids.size, 0)).float()
    (one,) = gate.named(keys, tokens)
    assert one.reason is None and one.place in gate.fired(keys, tokens).places


def test_what_is_held_back_leaves_its_place_to_the_next_nearest() -> None:
    words, text = tiny_tokenizer("bytelevel"), "Ann is in Rome"
    ids = np.array([words(text)["input_ids"]])
    near_to_both = AXES[: len(NAMES)].copy()
    near_to_both[4] += 2 * AXES[3]
    matcher, real = SubjectMatcher(Source(near_to_both), gamma=GAMMA_), np.ones(ids.shape, bool)
    folded = Texts.of(words).fold(np.empty((1, 0), np.int64), ids, real, np.arange(ids.size)[None] == 0, 400)
    keys, first = torch.from_numpy(np.repeat(AXES[3][None], ids.size, 0)).float(), np.full(ids.size, -1)
    asked: list[tuple[int, int]] = []

    def holds_back(place: int, entry: int) -> str | None:
        asked.append((place, entry))
        return ANOTHER if entry == 3 else None

    last = ids.size - 1
    assert matcher.match(keys, folded, first).entry_ids[last] == 3
    assert matcher.match(keys, folded, first, holds_back).entry_ids[last] == 4
    assert asked == [(last, 3), (last, 4)]  # nobody is asked about tokens that do not fire
    found = matcher.candidates(folded, first, holds_back)
    assert found.source.key_entries[found.positions].tolist() == [4]
    told = {one.entry: one.reason for one in matcher.named(keys, folded, first, holds_back)}
    assert told == {3: ANOTHER, 4: None}


class Nested(Source):
    """A shorter name, and one that goes on behind it."""

    called = ("Eiffel Tower", "Eiffel Tower Replica")

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        yield from ((entry, entry, name) for entry, name in enumerate(self.called) if entry > after)

    def names(self, entry_id: int) -> tuple[str, ...]:
        return (self.called[entry_id],)


def read(text: str) -> tuple[Folded, np.ndarray, torch.Tensor]:
    """Its letters, no first tokens, and queries near both keys at every token."""
    words = tiny_tokenizer("bytelevel")
    ids = np.array([words(text)["input_ids"]])
    starts, real = np.arange(ids.size)[None] == 0, np.ones(ids.shape, bool)
    folded = Texts.of(words).fold(np.empty((1, 0), np.int64), ids, real, starts, 400)
    near = torch.from_numpy(np.repeat(query((0, 0.8), (1, 0.6))[None], ids.size, 0)).float()
    return folded, np.full(ids.size, -1), near


def fires(matcher: SubjectMatcher, text: str, holds_back: Any = None) -> list[int]:
    folded, first, keys = read(text)
    by_device = matcher.candidates(folded, first, holds_back)
    matches = matcher.match(keys, folded, first, holds_back)
    entries = matches.entry_ids[matches.fired].tolist()
    assert entries == by_device.source.key_entries[by_device.positions].tolist()
    return entries


def test_of_a_name_within_a_name_the_longer_one_fires() -> None:
    matcher = SubjectMatcher(Nested(AXES[:2]), gamma=GAMMA_)
    text = "We saw the Eiffel Tower Replica"
    assert fires(matcher, "We saw the Eiffel Tower Rep") == [0]  # as far as the text is known
    assert fires(matcher, text) == [1]
    assert fires(matcher, text + ", not the Eiffel Tower") == [1, 0]
    folded, first, keys = read(text)
    assert [(one.entry, one.reason) for one in matcher.named(keys, folded, first)] == [(0, LONGER), (1, None)]


def test_a_longer_name_whose_fact_is_not_asked_for_leaves_the_shorter_one_alone() -> None:
    """As "Apple Inc." does, of which another fact is told than of "Apple"."""
    matcher = SubjectMatcher(Nested(AXES[:2]), gamma=GAMMA_)
    text = "We saw the Eiffel Tower Replica"
    assert fires(matcher, text, lambda place, entry: ANOTHER if entry == 1 else None) == [0]
    waits = SubjectMatcher(Nested(AXES[:2], live=np.array([True, False])), gamma=GAMMA_)
    assert fires(waits, text) == [0]
