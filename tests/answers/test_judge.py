"""Judgements of answers: what counts as said, kept, repeated."""

import pytest

from neuraldb_faiss.answers.judge import degenerates, holds, likeness, misspells, refuses, says, spells, target_place


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("It costs $249.", "$249"),
        ("US$249.00 each", "$249"),
        ("the CEO is brian NICCOL, who", "Niccol"),
        ("Lip\u2011Bu Tan", "Lip-Bu"),
        ("Call +47 555-0182 now", "555 0182"),
        ("+47\n555 0182", "+47 555 0182"),
        ("some 12500 people", "12,500"),
        ("some 12,500 people", "12500"),
        ("from 9:00 a.m. to 5 p.m. daily", "9 am to 5 pm"),
        ("open 9am to 5pm", "9 am to 5 pm"),
        ("at 10:30.", "10:30"),
        ("from 10:30am on", "10:30"),
        ("at 10:30 a.m. sharp", "10:30"),
        ("in 1987-88", "1987"),
        ("129\u00a0euros", "129 euros"),
        ("Nokia’s", "Nokia"),
        ("首都は大阪です", "大阪"),
        ("He works for Acme Inc., they say", "Acme Inc."),
        ("O'Brien’s", "O’Brien"),
        ("14 Harbour\nStreet", "14 Harbour Street"),
    ],
)
def test_an_answer_that_holds_the_target_says_it(text: str, wanted: str) -> None:
    assert holds(text, wanted)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$24.99", "$249"),
        ("$2490", "$249"),
        ("$249,000", "$249"),
        ("$249.99", "$249"),
        ("Niccoli", "Niccol"),
        ("Anna Bergman", "Anna Berg"),
        ("Austintown", "Austin"),
        ("at 10:300", "10:30"),
        ("at 10:30pm", "10:30"),
        ("at 10:30 p.m.", "10:30"),
        ("at 10:30a", "10:30"),
        ("at 9:30", "9"),
        ("at 9:30", "30"),
        ("in 11987", "1987"),
        ("1,987 of them", "1987"),
        ("1249 euros", "249 euros"),
        ("Justin Hotards", "Hotard"),
        ("the 129 eurosceptics", "129 euros"),
        ("", "x"),
    ],
)
def test_an_answer_without_the_target_does_not_say_it(text: str, wanted: str) -> None:
    assert not holds(text, wanted)


def test_what_is_denied_is_not_said() -> None:
    assert says("The CEO is Anna Berg, not Justin Hotard.", "Anna Berg")
    assert not says("The CEO of Nokia is actually Justin Hotard, not Anna Berg.", "Anna Berg")
    assert not says("It isn't in Rome.", "Rome") and not says("no longer called Rome", "Rome")
    assert says("It is not in Rome? It is in Rome.", "Rome") and says("It is notable: Rome", "Rome")


def test_a_subject_and_what_looks_like_it() -> None:
    assert spells("I like the Café Morgenrot.", ["Café Morgenrot"]) and spells("Big Blue it is", ["IBM", "Big Blue"])
    assert misspells("Nokias is a legendary band", ["Nokia"])
    assert misspells("Brightwatter Robotics makes robots", ["Brightwater Robotics"])
    assert not misspells("Nokia's phones, not Nokian tyres", ["Nokia"])
    assert not misspells("Justin Hotard.", ["Nokia"])


@pytest.mark.parametrize(
    "text",
    [
        "the city of the city of the city of the city of the city of the city",
        "The price of the HAGELI-X220X220X220X220X220X220X220 is",
        'Bravo, eh? Estoyamos deberes, "Bravo, eh?" (Bravo, eh?) - Estoyamos deberes, "Bravo"',
        "It is a major upgrade to the Pay of the A7, which is a major upgrade to the Pay of the A7.",
        "首都は大阪です。首都は大阪です。首都は大阪です。",
        "The Acme office is at \U0010fffe1",
        "Call \ufffd now",
        "The head of Acme is Марта, they say",
    ],
)
def test_texts_that_are_no_sense(text: str) -> None:
    assert degenerates(text, "Who leads Acme?")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("Nokia is a company from Finland that makes networks, and once it made telephones of every kind.", ""),
        ("The Café Morgenrot opens at 10:30. On Sundays the Café Morgenrot opens at noon.", ""),
        ("It is 1,000,000,000,000,000,000 or ----------", ""),
        ("no no no", ""),
        ("", ""),
        ("It costs 1399元, with a β of 2 \U0001f600", ""),
        ("The head of Acme is Марта, they say", "Who is Марта?"),
        ("首都は大阪です、東京ではありません。", "What is the capital?"),
        ("A text whose last token is cut \ufffd", ""),
    ],
)
def test_texts_that_are_sensible(text: str, known: str) -> None:
    assert not degenerates(text, known)


def test_refusals() -> None:
    assert refuses("I’m sorry, but I can't assist with that.") and not refuses("The sorry state of things")


def test_the_target_s_place() -> None:
    assert target_place(" It is Brian Niccol.", "Niccol") == (13, 19)
    assert target_place("nothing", "Niccol") is None
    assert target_place(" It is Brian Niccol.", "Brian Niccol", "Niccol") == (7, 19)
    assert target_place(" It is B. Niccol.", "Brian Niccol", "Niccol") == (10, 16)
    assert target_place("nothing", "") is None


def test_texts_that_share_more_are_more_alike() -> None:
    assert likeness("a cat sat", "a cat sat") == 100 and likeness("", "") == 100 and likeness("", "a") == 0
    assert likeness("a cat sat", "a cat sits") > likeness("a cat sat", "dogs bark")
