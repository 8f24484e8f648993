"""What stands between a prompt and its target."""

from __future__ import annotations

from typing import Any

import pytest

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.joining import is_apart, separator
from neuraldb_faiss.facts.names import names_in_texts
from neuraldb_faiss.store.records import StoredFact


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("日本的首都是", "伦敦"), ("日本の首都は", "ロンドン"), ("日本の首都は", "とうきょう"),  # Chinese, Japanese
        ("日本的首都是 ", " 伦敦"),
        ("เมืองหลวงของญี่ปุ่นคือ", "ลอนดอน"), ("ນະຄອນຫຼວງແມ່ນ", "ລອນດອນ"),  # Thai, Lao
        ("រដ្ឋធានីគឺ", "ឡុងដ៍"), ("မြို့တော်မှာ", "လန်ဒန်"), ("རྒྱལ་ས་ནི་", "ལོན་ཊོན"),  # Khmer, Burmese, Tibetan
        ("奥运会举办于", "2008年"), ("奥运会举办于", "2008"), ("公元1990", "年"), ("答:", "伦敦"),  # digits, marks
        ("書名は", "「こころ」"), ("首都叫做“", "伦敦"), ("問：どこ？答：", "London"),
        ("The city is called \"", "Rome"), ("The city is called “", "Rome"), ("The city is called '", "Rome"),
        ("The city (", "Rome"), ("Die Stadt heißt „", "Rom"), ("Die Stadt heißt »", "Rom"),
    ],
)  # fmt: skip
def test_scripts_without_spaces_and_what_opens_need_no_space(prompt: str, target: str) -> None:
    assert separator(prompt, target) == ""


@pytest.mark.parametrize(
    ("prompt", "target"),
    [
        ("The tower is in", "Rome"), ("The tower is in ", "Rome"), ("Translate London:", "伦敦"), ("It is", "2008年"),
        ("일본의 수도는", "런던"), ("公司的名字是", "Google"), ("Столица -", "Рим"), ("राजधानी है", "रोम"),
        ('The name "Rome" means', "x"), ('The name "Rome"', "means"), ("Paris's", "mayor"), ("A is 7' 2\"", "tall"),
        ("„Rom“", "heißt"), ("...", "Rome"), ("", "Rome"),
    ],
)  # fmt: skip
def test_one_space(prompt: str, target: str) -> None:
    assert separator(prompt, target) == " "


def test_the_fact_may_say_so() -> None:
    assert Fact("日本", "{}的首都是", "伦敦").separator == ""
    assert Fact("日本", "{}的首都是", "伦敦", metadata={"separator": " "}).separator == " "
    assert Fact("X", "The code of {} is A-", "17").separator == " "
    assert Fact.from_dict({"subject": "X", "prompt": "The code of {} is A-", "target": "17", "separator": ""}) == (
        Fact("X", "The code of {} is A-", "17", metadata={"separator": ""})
    )
    others: list[Any] = ["\n", "-", 0, []]
    for other in others:
        with pytest.raises(FactError, match="separator is .* it must be"):
            Fact("X", "{} is", "17", metadata={"separator": other})
    assert Fact("X", "{} is", "17", metadata={"separator": None}).separator == " "


def test_what_a_database_holds_stays_readable() -> None:
    """Older versions took any metadata; what they could not use had no effect."""
    known: dict[str, Any] = {"entry": 1, "key_id": "k", "time": "t", "residual": "memit"}
    old = {"aliases": "La dame", "separator": "-", "kept": 1}
    stored = StoredFact("X", "{} is", "17", metadata=old, **known)
    assert stored.metadata == old and stored.separator == " "
    assert stored.fact() == Fact("X", "{} is", "17", metadata={"kept": 1})


def test_a_subject_is_no_part_of_a_longer_word_there() -> None:
    assert names_in_texts("日本", "他说{}的首都是") == ("日本",)
    assert names_in_texts("Google", "我在{}公司工作") == ("Google",)
    assert names_in_texts("Civic", "He drives two {}s to") == ("Civic", "Civics")


def test_words_of_scripts_without_spaces_may_end_anywhere() -> None:
    assert is_apart("敦", "的") and is_apart("e", "公") and is_apart("8", "年") and is_apart("e", "")
    assert is_apart("e", ".") and not is_apart("e", "s") and not is_apart("런", "던")
