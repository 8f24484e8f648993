from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from neuraldb_faiss.strict_json import MAX_DEPTH, BadJSON, is_count, is_number, parse, parse_object, parse_strings

LEAVES = some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False)
TEXTS = some.text(some.characters(exclude_categories=["Cs"]))
JSON = some.recursive(LEAVES | TEXTS, lambda inner: some.lists(inner) | some.dictionaries(TEXTS, inner))


@given(JSON, some.booleans())
def test_what_json_writes_is_read_back(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text) == parse(text.encode()) == value


@given(some.text() | some.binary() | JSON.map(json.dumps).map(lambda text: text[:-1]))
def test_anything_else_is_one_error(text: str | bytes) -> None:
    try:
        json.dumps(parse(text), allow_nan=False, ensure_ascii=False).encode()
    except BadJSON as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(("text", "told"), [
    (None, "NoneType where a JSON text belongs"), (7, "int where"), ("", "Expecting value"), (b"\xff", "utf-8"),
    ("[" * 100_000, "nested too deep"), ("[" * 100 + "]" * 100, "nested too deep"), ("NaN", "NaN is no number"),
    ('{"a":' * 100 + "1" + "}" * 100, "nested too deep"), ("9" * 6000, "an integer of 6,000 digits"),
    ("-Infinity", "-Infinity is no number"), ("1e999", "too large for a float"), (" " * (33 << 20), "characters"),
    ('"\\ud800"', "surrogate"), ('{"\\udc00": 1}', "surrogate"), ('["a", {"b": ["\\ud800"]}]', "surrogate"),
])  # fmt: skip
def test_a_text_beyond_the_bounds_is_refused(text: Any, told: str) -> None:
    with pytest.raises(BadJSON, match=told):
        parse(text)


def test_a_text_within_the_bounds_is_read() -> None:
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse('"\\ud83d\\ude00"') == "\U0001f600"
    assert parse("9" * 4000) == int("9" * 4000)


def test_objects_lists_and_counts_are_checked_for_their_type() -> None:
    assert parse_object('{"a": 1}') == {"a": 1} and parse_strings('["a"]') == ("a",)
    for text in ("[]", "1", "null", '"a"'):
        with pytest.raises(BadJSON, match="no JSON object"):
            parse_object(text)
    for text in ("{}", "[1]", "null", '["a", null]'):
        with pytest.raises(BadJSON, match="no list of strings"):
            parse_strings(text)
    assert [is_count(value) for value in (0, 2**53 - 1, 2**53, -1, True, 1.0, None)] == [True, True, *[False] * 5]
    assert [is_number(value) for value in (0, -1.5, True, float("nan"), 10**400, "1")] == [True, True, *[False] * 4]
