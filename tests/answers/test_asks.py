"""What is asked of facts: their own words, their relation's, general frames, and files of asks."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from neuraldb_faiss.answers.asks import OTHER_QUESTION, SAID, Case, cases_of, read_asks, sample
from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.relations import own_relations


def texts(case: Case, kind: str) -> list[str]:
    found = [ask.prompt for ask in case.asks if ask.kind == kind]
    return [one if isinstance(one, str) else one[-1]["content"] for one in found]


def test_own_words_come_first() -> None:
    told = {"questions": ["Who leads {}?"], "paraphrases": ["The head of {} is"], "neighborhood_prompts": ["Rome is"]}
    (case,) = cases_of([Fact("Acme", "The CEO of {} is", "Ann Lee", relation="P169", metadata=told)], own_relations())
    assert texts(case, "question") == ["Who leads Acme?"] and texts(case, "completion") == ["The head of Acme is"]
    assert texts(case, "elsewhere") == ["Rome is"] and texts(case, "about") == ["Tell me about Acme."]
    assert all(ask.wanted == ("Ann Lee",) for ask in case.asks if ask.kind in SAID)


def test_a_relation_gives_its_words() -> None:
    case, plain = cases_of([Fact("Acme", "{} is led by", "Ann Lee", relation="P169")], own_relations())
    relation = own_relations().find("P169")
    assert texts(case, "question") == [one.replace("{}", "Acme") for one in relation.questions]
    assert len(texts(case, "other question")) == 2 and plain.fact is None
    assert all(ask.unwanted == ("Ann Lee",) for ask in case.asks if ask.kind == OTHER_QUESTION)


def test_other_questions_are_about_nothing_that_is_edited() -> None:
    """No fact of the subject is about them, and they do not give the same kind of thing."""
    relations = own_relations()
    edited = [one for one in relations.of("person") if one.id not in ("P1303", "P103", "P19")]
    facts = [Fact("Ann", f"{one.id} of {{}}:", "x", relation=one.id) for one in (*edited, relations.find("P103"))]
    case = cases_of(facts, relations)[len(edited)]
    free = {question.replace("{}", "Ann") for name in ("P1303", "P19") for question in relations.find(name).questions}
    assert len(texts(case, "other question")) == 2 and set(texts(case, "other question")) <= free


def test_prompts_about_other_subjects_name_none_that_is_edited() -> None:
    told = {"neighborhood_prompts": ["Windows 98 was created by", "Windows 2000 is by", "The acme is"]}
    facts = [
        Fact("Windows NT", "{} is by", "IBM", metadata=told),
        Fact("windows 98", "{} is by", "Intel"),
        Fact("Emca", "{} is by", "Sony", metadata={"aliases": ["ACME"]}),
    ]
    (case, *_) = cases_of(facts, own_relations())
    assert texts(case, "elsewhere") == ["Windows 2000 is by"]
    assert [ask.name for ask in case.asks if ask.kind == "elsewhere"] == ["elsewhere 1"]


@pytest.mark.parametrize(
    ("subject", "text", "named"),
    [
        ("Beyoncé", "BEYONCE\u0301 was born in", True),
        ("北京", "北京大学在", True),
        ("Beatle", "The Beatles sang", True),
        ("Oz", "Ozawa lives in", False),
        ("iPhone 1", "iPhone 12 is made by", False),
    ],
)
def test_names_are_found_as_the_guard_finds_them(subject: str, text: str, named: bool) -> None:
    (case, *_) = cases_of(
        [Fact("Acme", "{} is by", "IBM", metadata={"neighborhood_prompts": [text, "Rome is"]}),
         Fact(subject, "{} is", "x")],
        own_relations(),
    )  # fmt: skip
    assert texts(case, "elsewhere") == (["Rome is"] if named else [text, "Rome is"])


def test_plain_questions_name_no_edited_subject() -> None:
    *_, plain = cases_of([Fact("Spider", "The boss of {} is", "Ann"), Fact("rain.", "{} is", "dry")], own_relations())
    asked = texts(plain, "elsewhere")
    assert "How many legs does a spider have?" not in asked and "Write two sentences about rain." not in asked
    assert "Name three kinds of fruit." in asked


@pytest.mark.parametrize(
    ("prompt", "questions", "completions"),
    [
        ("The boss of {} is", ["What is the boss of Acme?", 'Fill in the blank: "The boss of Acme is ____."'],
         ["As is well known, the boss of Acme is", "Q: What is the boss of Acme?\nA:"]),
        ("{} lies in", ['Fill in the blank: "Acme lies in ____."'],
         ["As is well known, Acme lies in", 'Q: Fill in the blank: "Acme lies in ____."\nA:']),
        ("Who leads {}?", ["Who leads Acme?"], ["Q: Who leads Acme?\nA:"]),
    ],
)  # fmt: skip
def test_general_frames(prompt: str, questions: list[str], completions: list[str]) -> None:
    case = cases_of([Fact("Acme", prompt, "Ann Lee")], own_relations())[0]
    assert texts(case, "question") == questions and texts(case, "completion") == completions
    assert texts(case, "other question") == []


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def test_a_file_of_asks(tmp_path: Path) -> None:
    facts = [Fact("Acme", "The boss of {} is", "Ann Lee")]
    path = write(
        tmp_path / "asks.jsonl",
        {"subject": "Acme", "prompt": "The boss of Acme is", "target": "Ann Lee", "answer": "Lee",
         "questions": ["Who leads Acme?"], "completions": [], "other_questions": ["How old is Acme?", "Where is it?"],
         "other_answers": ["9"]},
        {"subject": "Acme", "prompt": "The boss of Acme is", "target": "Bob"},
        {"messages": [{"role": "user", "content": "Hi"}], "answer": "Ann+Bo Li (no Eve)", "name": "two"},
        {"messages": [{"role": "user", "content": "Call?"}], "answer": "+47 555"},
    )  # fmt: skip
    (case, two, call), left = read_asks(path, facts, own_relations())
    assert left == 1 and case.answer == "Lee" and case.asks[0].wanted == ("Lee",)
    assert texts(case, "question") == ["Who leads Acme?"] and texts(case, "completion") == []
    assert [ask.truth for ask in case.asks if ask.kind == OTHER_QUESTION] == ["9", None]
    assert two.name == "two" and two.asks[0].wanted == ("Ann", "Bo Li") and two.asks[0].unwanted == ("Eve",)
    assert call.asks[0].wanted == ("+47 555",)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (3, "line 1: a record is an object"),
        ({"subject": "Acme"}, "line 1: the prompt is empty"),
        ({"subject": "A", "prompt": "{} is", "target": "b", "questions": "Who?"}, "questions is a list of texts"),
        ({"messages": [], "answer": "x"}, "messages is a list"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "a conversation needs an answer"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, record: Any, said: str) -> None:
    path = write(tmp_path / "asks.jsonl", record)
    with pytest.raises(FactError, match=re.escape(said)):
        read_asks(path, [], own_relations())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FactError, match="no file of asks"):
        read_asks(tmp_path / "none", [], own_relations())


def test_a_sample_is_always_the_same_and_keeps_what_belongs_to_no_fact() -> None:
    cases = cases_of([Fact(f"Acme {n}", "The boss of {} is", "Ann") for n in range(9)], own_relations())
    chosen = sample(cases, 3)
    assert chosen == sample(cases, 3) and len(chosen) == 4 and chosen[-1].fact is None
    assert [one.name for one in cases if one in chosen] == [one.name for one in chosen]
    assert sample(cases, None) == sample(cases, 99) == cases
