"""An entry fires only where the text asks for what it says, or does not say what it asks for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, pre_tokenizers

from helpers.tiny import tiny_tokenizer
from neuraldb_faiss import build
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.guard.asking import Asking, is_within
from neuraldb_faiss.guard.entry_facts import EntryFacts
from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.guard.named import ANOTHER, LONGER, SAID, STATED, WORD
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.turns import Turn, Turns
from neuraldb_faiss.models.decoding import greedy_texts
from neuraldb_faiss.models.tokenization import chat_text
from neuraldb_faiss.store.records import StoredFact

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
CEO = Fact("Nokia", "The CEO of {} is", "Justin Hotard")
OFFICE = Fact("Nokia", "The head office of {} is in", "Espoo")


class Source:
    """Entry 0 serves one fact, entry 1 two."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def facts(self, *, entries: Sequence[int]) -> Iterator[StoredFact]:
        self.asked += entries
        for entry in entries:
            for fact in ((CEO,), (CEO, OFFICE), ())[entry]:
                yield StoredFact.of(fact, entry=entry, time="", key_id="", residual="")


@pytest.fixture(scope="module")
def words() -> Any:
    made = copy.deepcopy(tiny_tokenizer("bytelevel"))
    made.add_tokens([AddedToken(name, special=True) for name in ("<|start|>", "<|end|>")], special_tokens=True)
    made.chat_template = TEMPLATE
    return made


def mentions(words: Any, ids: list[int]) -> list[int]:
    """The tokens at which Nokia ends."""
    return [at for at in range(len(ids)) if words.decode(ids[: at + 1]).count("Nokia")
            > words.decode(ids[:at]).count("Nokia")]  # fmt: skip


def reasons(words: Any, text: str, entry: int = 0, *, cached: bool = False) -> list[str | None]:
    """What holds the entry back at each mention; `cached`: each token in a forward of its own."""
    asking = Asking(Texts.of(words), Turns.of(words), lambda ids: [])
    source: Any = Source()
    ids = words(text, add_special_tokens=False)["input_ids"]
    found = []
    for at in mentions(words, ids):
        past, now = (ids[:at], ids[at : at + 1]) if cached else ([], ids)
        positions = np.arange(len(past), len(past) + len(now))[None]
        tokens = Tokens(positions, None, np.array([now]), True, np.array(past, np.int64).reshape(1, -1))
        found.append(asking.reading(tokens, source)(at - len(past), entry))
    return found


def chat(words: Any, *turns: str, answer: str = "") -> str:
    told = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return str(words.apply_chat_template(told, add_generation_prompt=True, tokenize=False)) + answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CEO of Nokia is", [None]),
        ("The CEO of Nokia is Mary", [None]),
        ("Today Nokia", [None]),
        ("The Nokia said", [None]),
        ("Nokia is led by its chief executive,", [None]),
        ("Nokia was founded in the year", [ANOTHER]),
        ("The headquarters of Nokia are in", [ANOTHER]),
        ("Nokia was founded in the year 1865. The CEO of Nokia is", [ANOTHER, None]),
        ("The CEO of Nokia is well. Nokia was founded in the year", [None, ANOTHER]),
        ("The CEO of Nokia is Anna Berg. The CEO of Nokia is", [None, STATED]),
        ("Q: When was Nokia founded?\nA:", [ANOTHER]),
    ],
)
def test_in_a_text_to_be_continued_the_sentence_decides(words: Any, text: str, expected: list[str | None]) -> None:
    assert reasons(words, text) == expected


@pytest.mark.parametrize(
    ("turns", "answer", "expected"),
    [
        (["Who is the CEO of Nokia?"], "", [None]),
        (["When was Nokia founded?"], "", [ANOTHER]),
        (["Tell me about Nokia."], "", [ANOTHER]),
        (["The CEO of Nokia is Anna Berg. Who is the CEO of Nokia?"], "", [STATED, STATED]),
        (["I like Nokia.", "Good.", "Who is the CEO?"], "", [None]),
        (["I like Nokia.", "Good.", "When was it founded?"], "", [ANOTHER]),
        (["Who is the CEO of Nokia?"], "Nokia", [None, None]),
        (["Who is the CEO of Nokia?"], "Nokia was founded in 1865 by the founder of Nokia", [None, None, ANOTHER]),
        (["When was Nokia founded?"], "Nokia", [ANOTHER, ANOTHER]),
        (["Tell me about Nokia."], "Nokia", [ANOTHER, ANOTHER]),
        (["Tell me about Nokia."], "It makes phones. The CEO of Nokia", [ANOTHER, None]),
        (["Who is the CEO?"], "The CEO of Nokia is Anna Berg. The CEO of Nokia", [None, STATED]),
    ],
)
def test_in_a_chat_the_message_decides_or_the_answers_own_sentence(
    words: Any, turns: list[str], answer: str, expected: list[str | None]
) -> None:
    assert reasons(words, chat(words, *turns, answer=answer)) == expected


@pytest.mark.parametrize("answer", ["Nokia", "The founder of Nokia", "The CEO of Nokia"])
@pytest.mark.parametrize("question", ["Who is the CEO of Nokia?", "When was Nokia founded?", "Tell me about Nokia."])
def test_an_answer_is_judged_alike_with_any_cache(words: Any, question: str, answer: str) -> None:
    text = chat(words, question, answer=answer)
    assert reasons(words, text)[-1] == reasons(words, text, cached=True)[-1]


def test_one_fact_that_may_be_asked_for_is_enough(words: Any) -> None:
    for text in ("The CEO of Nokia is", "The headquarters of Nokia are in"):
        assert reasons(words, text, entry=1) == [None]
    assert reasons(words, "Nokia was founded in the year", entry=1) == [ANOTHER]
    assert reasons(words, "Nokia was founded in the year", entry=2) == [None]  # its facts are gone


def test_a_city_does_not_fire_where_its_country_is_asked_for(words: Any) -> None:
    assert reasons(words, chat(words, "Where is the head office of Nokia?"), 1) == [None]
    assert reasons(words, chat(words, "In which country is the head office of Nokia?"), 1) == [ANOTHER]


def test_texts_of_one_forward_are_read_apart_and_facts_once(words: Any) -> None:
    """Two texts packed into the first row, padding in the second, a cache before both."""
    one, two = (words(text)["input_ids"] for text in (" is the CEO of Nokia", "Nokia was founded in the year"))
    asked = words("Yes. Who")["input_ids"]
    row = [*one, *two]
    ids = np.array([row, [0] * (len(row) - len(one)) + one])
    positions = np.array([[*range(len(asked), len(asked) + len(one)), *range(len(two))], [0] * len(row)])
    positions[1, -len(one) :] = np.arange(len(asked), len(asked) + len(one))
    real = np.array([[True] * len(row), [False] * (len(row) - len(one)) + [True] * len(one)])
    source: Any = Source()
    tokens = Tokens(positions, real, ids, True, np.array([asked, asked]))
    holds_back = Asking(Texts.of(words), Turns.of(words), lambda ids: []).reading(tokens, source)
    first, second = len(one) - 1, len(one) + mentions(words, two)[0]
    assert [holds_back(at, 0) for at in (first, second, 2 * len(row) - 1)] == [None, ANOTHER, None]
    assert source.asked == [0]


def test_facts_that_another_thread_forgets_meanwhile_are_still_read(words: Any) -> None:
    class Forgetful(EntryFacts):
        def _remember(self, facts: Any) -> None:
            """As where another thread forgets what is remembered right behind this."""

    ids = words("Nokia was founded in the year")["input_ids"]
    source: Any = Source()
    asking = Asking(Texts.of(words), Turns.of(words), lambda ids: [])
    asking._facts = Forgetful(source)
    tokens = Tokens(np.arange(len(ids))[None], None, np.array([ids]), True, np.empty((1, 0), np.int64))
    assert asking.reading(tokens, source)(mentions(words, ids)[0], 0) == ANOTHER


def test_turns_of_a_template(words: Any) -> None:
    turns = Turns.of(words)
    start, end = words.convert_tokens_to_ids(["<|start|>", "<|end|>"])
    assert turns.marks == {start, end}
    assert words.decode(list(turns.opening)) == "<|start|>assistant\n"
    ids = words(chat(words, "Hi", "Yes", "Go", answer="Now"), add_special_tokens=False)["input_ids"]
    told = [(words.decode(ids[one.start : one.stop]).strip(), one.kind) for one in turns.split(ids)]
    assert [one for one in told if one[0]] == [
        ("user\nHi", "message"), ("Yes", "answer"), ("user\nGo", "message"), ("Now", "answer"),
    ]  # fmt: skip
    plain = words("Hi")["input_ids"]
    assert turns.split(plain) == [Turn(0, len(plain), "text")]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ 1 / 0 }}"])
def test_a_template_without_marks_or_openings_has_no_turns(words: Any, template: str | None) -> None:
    other = copy.deepcopy(words)
    other.chat_template = template
    assert Turns.of(other) == Turns()


@pytest.mark.slow
def test_the_demo_model_says_the_fact_where_it_is_asked_for(demo_model: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = demo_model
    with (
        build([CEO], model, tokenizer, tmp_path / "db") as db,
        db.attach(model, tokenizer, delivery="residual") as handle,
    ):

        def answer(text: str) -> str:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return greedy_texts(model, tokenizer, [ids], 20)[0]

        assert answer(CEO.text).startswith(" Justin Hotard")
        assert handle.hits
        handle.clear_trace()
        for message in ("When was Nokia founded?", "Tell me about Nokia."):
            asked = chat_text(tokenizer, [message])
            with handle.disabled():
                own = answer(asked)
            assert "Nokia" in own and answer(asked) == own
        assert not handle.trace()


@pytest.mark.parametrize(
    ("text", "rest", "within"),
    [
        ("Smits plays for Toronto", "", True),
        ("Smits plays for toronto", "", False),  # not as the target is written
        ("Smits plays for Toronto", " Raptors.", True),
        ("Smits plays for Toronto", " Rap", True),
        ("Smits plays for Toronto", ", where", False),
        ("Smits plays for NeoToronto", "", False),
        ("Smits plays for Toronto Raptors of Toronto", "", True),
        ("Smits plays for Raptors", "", False),
    ],
)
def test_a_name_within_a_target_that_is_being_said(text: str, rest: str, within: bool) -> None:
    assert is_within("Toronto Raptors", ["Toronto"], text, rest) == within


def test_a_name_that_is_the_whole_target_or_its_end_is_in_the_midst_of_nothing() -> None:
    assert not is_within("Toronto", ["Toronto"], "Smits lives in Toronto", "")
    assert not is_within("Raptors of Toronto", ["Toronto"], "Smits plays for the Raptors of Toronto", "")
    assert is_within("the Lower Rhine in Bonn", ["Rhine"], "It is on the Lower Rhine", "")


@pytest.mark.parametrize(
    ("text", "cached", "expected"),
    [
        ("Who owns Smits Inc? The owner of Smits", False, LONGER),
        ("Who owns Smits Inc? The owner of Smits", True, LONGER),
        ("Who owns Smits Inc? The owner of Smits Inc is", False, LONGER),
        ("Who owns Smits Inc? The owner of Smits is", False, None),  # it goes on otherwise
        ("Who owns Acme? The owner of Smits", False, None),
        ("Who owns Acme? The owner of Smits", True, None),
    ],
)
def test_a_name_whose_longer_one_was_asked_for(words: Any, text: str, cached: bool, expected: str | None) -> None:
    assert held(words, text, "Smits", ("Smits Inc", "Smits"), OWNERS, cached=cached) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Who commanded Apollo 1", None),
        ("Who commanded Apollo 1?", None),
        ("Who commanded Apollo 1 3 times", None),
        ("Who commanded Apollo 13?", WORD),
        ("<|start|>user\nWho commanded Apollo 13?<|end|>\n<|start|>assistant\n", WORD),
        ("<|start|>user\nWho commanded Apollo 1?<|end|>\n<|start|>assistant\n", None),
    ],
)
def test_a_number_that_goes_on_is_another_name(words: Any, text: str, expected: str | None) -> None:
    digits = copy.deepcopy(words)
    each = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    digits.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(each)
    apollo = Fact("Apollo 1", "The commander of {} was", "Ann")
    assert held(digits, text, "Apollo 1", ("none", "Apollo 1"), (CEO, apollo), cached=False) == expected


def test_an_alias_of_the_same_subject_is_no_longer_name(words: Any) -> None:
    """Another entry of it, to which the fact gives a longer alias, leaves it alone."""
    office = Fact("Smits", "{} has", "an office", metadata={"aliases": ["Smits Inc"]})
    text = "Who owns Smits? The owner of Smits"
    assert held(words, text, "Smits", ("Smits", "Smits"), (office, OWNERS[1]), cached=True) is None


OWNERS = (Fact("Smits Inc", "The owner of {} is", "Ann"), Fact("Smits", "The owner of {} is", "Bob"))
SMITS = Fact("Smits", "{} plays for", "Toronto Raptors")
CITY = Fact("Toronto", "{} is located in", "Norway")


def held(words: Any, text: str, name: str, called: Sequence[str], facts: Sequence[Fact], *, cached: bool) -> str | None:
    """What holds entry 1 back where the text says the name last. called: the name of each entry."""

    class Told:
        def facts(self, *, entries: Sequence[int]) -> Iterator[StoredFact]:
            for entry in entries:
                yield StoredFact.of(facts[entry], entry=entry, time="", key_id="", residual="")

    ids = words(text, add_special_tokens=False)["input_ids"]

    def ends(ids: Sequence[int], name: str) -> list[int]:
        said = [words.decode(ids[: at + 1]).count(name) for at in range(len(ids))]
        return [at for at in range(len(ids)) if said[at] > (said[at - 1] if at else 0)]

    def subjects(ids: Sequence[int]) -> list[tuple[int, int]]:
        return [(at, entry) for entry, one in enumerate(called) for at in ends(ids, one)]

    at, source = ends(ids, name)[-1], Told()
    past, now = (ids[:at], ids[at : at + 1]) if cached else ([], ids)
    tokens = Tokens(
        np.arange(len(past), len(past) + len(now))[None], None, np.array([now]), True,
        np.array(past, np.int64).reshape(1, -1),
    )  # fmt: skip
    return Asking(Texts.of(words), Turns.of(words), subjects).reading(tokens, source)(at - len(past), 1)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What team does Smits play for? Toronto", SAID),
        ("What team does Smits play for? Toronto Raptors", SAID),
        ("What team does Jones play for? Toronto", None),
        ("Where was Smits born? Toronto", None),  # which asks for nothing that entry 0 says
        ("Toronto is big. What team does Smits play for?", None),
    ],
)
def test_a_target_that_is_being_said_is_not_broken_off(
    words: Any, text: str, expected: str | None, cached: bool
) -> None:
    """By the subject of another fact."""
    assert held(words, text, "Toronto", ("Smits", "Toronto"), (SMITS, CITY), cached=cached) == expected
