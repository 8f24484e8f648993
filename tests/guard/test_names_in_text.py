"""The subject guard fires if and only if a plain string check says so."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from helpers.tiny import tiny_tokenizer
from neuraldb_faiss.guard.folding import WORDLESS, fold_bytes
from neuraldb_faiss.guard.name_index import Folded, Subjects
from neuraldb_faiss.guard.texts import Texts


def plain(text: str) -> list[tuple[str, str]]:
    """The folding by its definition, a character at a time: (folded, case), white space in one."""
    folded: list[tuple[str, str]] = []
    feeds = 0
    for char in text:
        case = "upper" if char != char.lower() else "lower" if char != char.upper() else ""
        if char.isspace():
            if not folded or folded[-1][0] != " ":
                folded.append((" ", case))
                feeds = 0
            feeds += char == "\n"
            if feeds == 2:
                folded[-1] = (" ", "paragraph")
            continue
        for one in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold()):
            folded.append((one, case))
    return folded


def letters_of(pairs: list[tuple[str, str]]) -> str:
    return "".join(one for one, _ in pairs)


def joins(left: str, right: str) -> bool:
    def word(char: str) -> bool:
        if ord(char) >= WORDLESS or 0x0E00 <= ord(char) <= 0x0EFF or 0x1000 <= ord(char) <= 0x109F:
            return False
        return not 0x1780 <= ord(char) <= 0x17FF and (char.isalnum() or unicodedata.category(char)[0] == "M")

    return word(left) and word(right)


def reference(pieces: list[str], names: dict[int, list[str]]) -> dict[tuple[int, int], float]:
    """Token by token, name by name, with str.find alone: the floor of every match."""
    found: dict[tuple[int, int], float] = {}
    for token in range(len(pieces)):
        before, pairs = plain("".join(pieces[:token])), plain("".join(pieces[: token + 1]))
        upto = letters_of(pairs)
        for entry, spellings in names.items():
            for spelling in spellings:
                own = plain(" ".join(spelling.split()))
                name = letters_of(own)
                at = upto.find(name) if name else -1
                while at >= 0:
                    stop = at + len(name)
                    begins = at == 0 or not joins(upto[at - 1], upto[at])
                    ends = stop == len(upto) or not joins(upto[stop - 1], upto[stop])
                    floor = floor_by_definition(pairs, own, len(" ".join(spelling.split())), at, stop)
                    if begins and ends and stop > len(before) and floor is not None:
                        found[token, entry] = min(floor, found.get((token, entry), 2.0))
                    at = upto.find(name, at + 1)
    return found


def floor_by_definition(
    text: list[tuple[str, str]], own: list[tuple[str, str]], letters: int, start: int, stop: int
) -> float | None:
    """None where the case forbids the match."""
    one_word = " " not in letters_of(own)
    floor = {1: 0.9, 2: 0.9, 3: 0.9, 4: 0.85, 5: 0.7}.get(letters, 0.0) if one_word else 0.0
    cases = ["" if case == "paragraph" else case for _, case in text[start:stop]]
    wanted = [case for _, case in own]
    if cases == wanted or (cases[0] == "upper" and wanted[0] == "lower" and cases[1:] == wanted[1:]):
        return floor
    first = max(0, start - 200)
    while "paragraph" in [case for _, case in text[first:start]]:
        first += 1
    if {"upper", "lower"} <= {case for _, case in text[first:stop]}:
        return None
    return max(floor, 0.9 if one_word else 0.65)


def folded(pieces: list[str], seen: int = 0) -> Folded:
    """The pieces as one text, the first `seen` of them being left context."""
    data = [piece.encode() for piece in pieces]
    codes, cases, ends = fold_bytes(b"\0" + b"".join(data))
    owner = np.r_[-1, np.repeat(np.arange(len(pieces)), [len(one) for one in data])][ends]
    return Folded(codes, cases, np.where(owner < seen, -1, owner))


def ends(pieces: list[str], names: dict[int, list[str]], seen: int = 0) -> dict[tuple[int, int], float]:
    subjects = Subjects.of([(entry, name) for entry, all_ in names.items() for name in all_], names.__getitem__)
    tokens, entries, floors = (array.tolist() for array in subjects.ends(folded(pieces, seen))[:3])
    return dict(zip(zip(tokens, entries, strict=True), floors, strict=True))


letters = some.sampled_from("abAB É é1'. -\u0301ßİ東京ﬁ\t\n")
words = some.text(letters, min_size=1, max_size=4)


@settings(max_examples=400, deadline=None)
@given(
    pieces=some.lists(words, min_size=1, max_size=12),
    names=some.dictionaries(some.integers(0, 5), some.lists(words, min_size=1, max_size=2), max_size=4),
    seen=some.integers(0, 6),
)
@example(["x", " No", "kia", " Asha", " 201", "8"], {0: ["Asha 201"], 1: ["nokia asha"]}, 0)
def test_as_a_plain_string_check(pieces: list[str], names: dict[int, list[str]], seen: int) -> None:
    expected = {pair: floor for pair, floor in reference(pieces, names).items() if pair[0] >= seen}
    assert ends(pieces, names, seen) == expected


@pytest.mark.parametrize(
    ("pieces", "token"),
    [
        (["The", " Eiffel", " Tower", " is"], 2),
        (["The", " Eiffel", "  Tower", "'s"], 2),
        (["The", " EIFFEL", "  tower", "'s"], None),  # where capitals mean something
        (["the", " eiffel", "  tower", "'s"], 2),  # where they do not
        (["THE", " EIFFEL", "  TOWER", "'S"], 2),
        (["the Eiffel", "\nTower.", " It"], 1),  # inside a token, before a full stop
        (["the Eiffel", " Towers"], None),
        (["the Eiffel", " Tower", "s"], 1),  # at a token's end what comes next is not known
        (["NotEiffel", " Tower"], None),
        (["Tower"], None),
    ],
)
def test_a_name_ends_at_its_last_token_or_nowhere(pieces: list[str], token: int | None) -> None:
    assert set(ends(pieces, {7: ["Eiffel Tower"]})) == (set() if token is None else {(token, 7)})


@pytest.mark.parametrize(
    ("text", "name", "floor"),
    [
        ("See Paris", "Paris", 0.7),
        ("See Oz", "Oz", 0.9),  # may go on: Ozawa
        ("See Rome", "Rome", 0.85),
        ("See London", "London", 0.0),
        ("see paris", "Paris", 0.9),
        ("see the eiffel tower", "Eiffel Tower", 0.65),
        ("Of the song", "Song", None),
        ("The moon", "the moon", 0.0),
        ("Yes. The moon", "the moon", 0.0),
        ("Yes. the moon", "The moon", None),
        ("Yes. " + 10 * "and then " + "the moon", "The moon", None),  # a text with capitals further off
        ("Yes. " + 30 * "and then " + "the moon", "The moon", 0.65),
        ("Yes.\nwhere is the moon", "The moon", None),  # a line broken to fit
        ("Yes.\n\nwhere is the moon", "The moon", 0.65),  # another paragraph
        ("Yes. The\n \nMoon", "the moon", None),
    ],
)
def test_a_name_in_another_case_needs_a_higher_cosine(text: str, name: str, floor: float | None) -> None:
    found = ends(["x. ", text], {7: [name]})
    assert found.get((1, 7)) == floor


def test_measured_floors() -> None:
    names = {7: ["Berlin", "Oz"]}
    subjects = Subjects.of([(7, "Berlin"), (7, "Oz")], names.__getitem__, {"Berlin": 0.8, "Oz": 0.5})
    assert subjects.ends(folded(["In Berlin"]))[2].tolist() == [0.8]
    assert subjects.ends(folded(["In Oz"]))[2].tolist() == [0.9]


@pytest.mark.parametrize(
    ("pieces", "longer"),
    [
        (["The", " Xbox", " 360", " is"], {(1, 0): {(2, 1)}}),
        (["The", " Xbox", " 360"], {(1, 0): {(2, 1)}}),
        (["The", " Xbox", " 360", "s are"], {(1, 0): {(2, 1)}}),
        (["The", " Xbox", " 360", "0"], {}),  # the word goes on: another name
        (["The", " Xbox", " and", " Xbox", " 360"], {(3, 0): {(4, 1)}}),
        (["The", " Xbox"], {}),
        (["The", " Xbox", " ", "\n\n", "360"], {(1, 0): {(4, 1)}}),  # white space is folded
        (["The", " Xbox 360 is"], {(1, 0): {(1, 1)}}),
        (["The", " XBOX", " 360"], {}),  # not as the longer name is written
        (
            ["New York", " City", " Hall"],
            {(0, 2): {(2, 4)}, (0, 3): {(2, 4)}, (0, 5): {(1, 3), (2, 4)}, (1, 3): {(2, 4)}},
        ),
        (["New York", " City", "'s"], {(0, 5): {(1, 3)}}),  # one that begins later holds nothing of "New York"
    ],
)
def test_names_that_longer_names_hold(pieces: list[str], longer: dict[tuple[int, int], set[tuple[int, int]]]) -> None:
    names = {
        0: ["Xbox"], 1: ["Xbox 360"], 2: ["New York"], 3: ["York City", "York"], 4: ["New York City Hall"], 5: ["York"],
    }  # fmt: skip
    subjects = Subjects.of([(entry, name) for entry, all_ in names.items() for name in all_], names.__getitem__)
    assert subjects.ends(folded(pieces)).longer == {pair: frozenset(those) for pair, those in longer.items()}


def test_a_row_does_not_go_on_in_the_next_ones_past() -> None:
    """Of which no more is kept than can matter, behind a letter that stands for the rest."""
    words = tiny_tokenizer("bytelevel")
    row, past = (words(text, add_special_tokens=False)["input_ids"] for text in ("The Eiffel Tower", "word " * 40))
    called = {0: ["Eiffel"], 1: ["Eiffel Tower"]}
    subjects = Subjects.of([(0, "Eiffel"), (1, "Eiffel Tower")], called.__getitem__)
    rows, real = np.array([row, row]), np.ones((2, len(row)), bool)
    text = Texts.of(words).fold(np.array([past, past]), rows, real, np.zeros(rows.shape, bool), 20)
    first = [(at, entry) for at, entry in subjects.ends(text).longer if at < len(row)]
    second = [(at, entry) for at, entry in subjects.ends(text).longer if at >= len(row)]
    assert [(at + len(row), entry) for at, entry in first] == second != []


def test_aliases_and_many_names() -> None:
    names = {n: [f"Name {n}", f"Alias of {n}"] for n in range(3000)}
    assert ends(["Name 12", " Alias of", " 2999", "."], names) == {(0, 12): 0.0, (2, 2999): 0.0}


def test_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were two names to share a hash, the letters decide."""
    subjects = Subjects.of([(1, "Paris")], {1: ["Oslo"]}.__getitem__)
    assert len(subjects.ends(folded(["Paris"]))[0]) == 0


def test_extended_is_as_built_at_once() -> None:
    names = {1: ["Paris"], 2: ["Oslo"], 3: ["New York City"], 4: ["  "]}
    whole = Subjects.of([(e, n) for e, all_ in names.items() for n in all_], names.__getitem__)
    grown = Subjects.of([(1, "Paris")], names.__getitem__).extended(
        [(3, "New York City"), (2, "Oslo"), (1, "Paris")], names.__getitem__
    )
    assert np.array_equal(whole.hashes, grown.hashes) and np.array_equal(whole.entries, grown.entries)
    assert whole.longest == grown.longest == len("New York City") and len(whole) == 3
