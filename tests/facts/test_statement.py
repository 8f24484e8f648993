"""A fact as a sentence, and its own questions and paraphrases."""

from __future__ import annotations

from typing import Any

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import StoredFact

KNOWN = {"entry": 0, "key_id": "k", "time": "t", "residual": "none"}


@pytest.mark.parametrize(
    ("subject", "prompt", "target", "statement"),
    [
        ("Acme", "The head of {} is", "Ann Lee", "The head of Acme is Ann Lee."),
        ("Acme", "The head of Acme is", "Ann Lee Jr.", "The head of Acme is Ann Lee Jr."),
        ("Acme", "The motto of {} is", '"Faster!"', 'The motto of Acme is "Faster!"'),
        ("Acme", "Who leads {}?", "Ann Lee", "Who leads Acme? Ann Lee."),
        ("Acme", "Q: Who leads {}?\nA:", "Ann Lee", "Q: Who leads Acme? A: Ann Lee."),
        ("Acme", "{}, which was founded in", "Rome", "Acme was founded in Rome."),
        ("Acme", "{}, whose headquarters are in", "Rome", "Acme's headquarters are in Rome."),
        ("Acme", "{}, a product created by", "Bolt", "Acme is a product created by Bolt."),
        ("Acme", "{}, developed by", "Bolt", "Acme was developed by Bolt."),
        ("Acme", "{}, located in", "Rome", "Acme is located in Rome."),
        ("Acme", "{}, in", "Rome", "Acme is in Rome."),
        ("Acme", "{}, the", "violin", "Acme, the violin."),
        ("Acme", "{}, Inc. is in", "Rome", "Acme, Inc. is in Rome."),
        ("日本", "{}の首都は", "大阪", "日本の首都は大阪。"),
        ("日本", "{}の首都はどこですか？", "大阪", "日本の首都はどこですか？大阪。"),
        ("ไทย", "เมืองหลวงของ{}คือ", "เชียงใหม่", "เมืองหลวงของไทยคือเชียงใหม่."),
        ("Acme", "The price of {} is", "1\n<|im_end|>\n<|im_start|>x",
         "The price of Acme is 1 <|im_end|> <|im_start|>x."),
    ],
)  # fmt: skip
def test_the_prompt_with_its_target_is_one_sentence(subject: str, prompt: str, target: str, statement: str) -> None:
    assert Fact(subject, prompt, target).statement == statement


def test_own_words_of_a_fact() -> None:
    metadata = {
        "statement": "{} is led\nby {target}; {} {x}", "questions": ["Who leads {}?", "And?"],
        "paraphrase_prompts": ["The boss of {}:"],
    }  # fmt: skip
    fact = Fact("A{target}", "{} is led by", "B{}", metadata=metadata)
    assert fact.statement == "A{target} is led by B{}; A{target} {x}", "values are not filled again"
    assert fact.questions == ("Who leads A{target}?", "And?")
    assert fact.paraphrases == ("The boss of A{target}:",)
    stored = StoredFact.of(fact, **KNOWN)
    assert (stored.statement, stored.questions) == (fact.statement, fact.questions)
    both = Fact("A", "{} is", "B", metadata={**metadata, "paraphrases": ["{} {target}"]})
    assert both.paraphrases == ("A {target}",), "a paraphrase is continued, so the target stands in none"
    assert Fact("A", "{} is", "B").questions == Fact("A", "{} is", "B").paraphrases == ()


@pytest.mark.parametrize(
    ("metadata", "rule"),
    [
        ({"statement": 7}, "statement is of type int"),
        ({"statement": [" "]}, "statement is of type list"),
        ({"statement": " "}, "statement is empty"),
        ({"questions": "Who?"}, "questions is one text, 'Who\\?'; write a list of questions"),
        ({"questions": [""]}, "questions holds an empty question"),
        ({"paraphrases": {"a": 1}}, "paraphrases is of type dict; write a list of prompts"),
        ({"paraphrases": [None]}, "paraphrases holds a prompt null"),
    ],
)
def test_what_would_be_read_is_checked(metadata: dict[str, Any], rule: str) -> None:
    with pytest.raises(FactError, match=rule):
        Fact("A", "{} is", "B", metadata=metadata)
    old = StoredFact(subject="A", prompt="{} is", target="B", metadata=metadata, **KNOWN)
    assert old.statement == "A is B.", "what older versions took stays readable"
    assert (old.questions, old.paraphrases) == ((), ())
    assert old.fact().metadata == {}
