"""Whatever bytes a fact file holds, reading it gives facts or an error of ours that names the file."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import FORMATS, Fact, read_facts

NAMES = ["subject", "prompt", "target", "id", "metadata", "requested_rewrite", "target_new", "src", "answers", "alt",
         "question", "rephrase", "loc", "ground_truth", "str"]  # fmt: skip
values = some.recursive(
    some.none() | some.booleans() | some.floats() | some.integers() | some.text(max_size=8) | some.just("{} is"),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
records = some.dictionaries(some.sampled_from(NAMES), values, max_size=6)
GZIP = b"\x1f\x8b"  # a file that begins with it is unpacked, whatever its name
lines = some.binary(max_size=40) | records.map(lambda record: json.dumps(record).encode())


def is_whole(content: bytes) -> bool:
    """Whether the file is one JSON array or gzip-compressed, so that it is good or bad as a whole."""
    return content.startswith(GZIP) or content.removeprefix(b"\xef\xbb\xbf").strip().startswith(b"[")


def read(content: bytes, name: str, **how: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            assert all(isinstance(fact, Fact) for fact in read_facts(path, **how))
        except FactError as error:
            assert name in str(error) and "\n" not in str(error).strip()


@settings(max_examples=150, deadline=None)
@given(content=some.lists(lines, max_size=5).map(b"\n".join), kind=some.sampled_from(sorted(FORMATS)))
def test_lines_of_anything(content: bytes, kind: str) -> None:
    read(content, "facts.jsonl", format=kind)


@settings(max_examples=60, deadline=None)
@given(content=some.lists(lines, min_size=1, max_size=4).map(b"\n".join), at=some.integers(0, 200))
def test_damaged_gzip(content: bytes, at: int) -> None:
    packed = bytearray(gzip.compress(content))
    packed[at % len(packed)] ^= 0x41
    read(bytes(packed), "facts.jsonl.gz")
    read(bytes(packed[: at % len(packed)]), "facts.jsonl.gz")


@settings(max_examples=60, deadline=None)
@given(content=some.lists(lines, max_size=5).map(b"\n".join).filter(lambda content: not is_whole(content)))
def test_bad_records_can_be_left_out(content: bytes) -> None:
    bad: list[Any] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "facts.jsonl"
            path.write_bytes(content)
            list(read_facts(path, format="jsonl", on_bad=bad.append))
    except FactError as error:
        pytest.fail(f"a bad record was not left out: {error}")
    assert all(one.line >= 1 for one in bad)
