"""The layout of a vector file: which tensors, which metadata, and a fact as one line of JSON. See docs/exchange.md."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuraldb_faiss.config import DatabaseConfig
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.store import StoredFact
from neuraldb_faiss.store.records import canonical
from neuraldb_faiss.store.segments import ARRAYS
from neuraldb_faiss.strict_json import is_count, is_number, parse_object

MARK = "neuraldb-faiss"  # the metadata's `format`
VERSION = "1"
LOCAL = ("epoch", "history_start")  # settings of one folder's history; all others go along

# safetensors' name of each type
TYPES = {"<i8": "I64", "<i4": "I32", "<f4": "F32", "<f2": "F16", "|u1": "U8"}
# name -> (dtype, a row per "entry", "key" or "byte", columns: "d1", "d2" or none). The widest types come first, so that
# every tensor starts at a multiple of its item's size.
TENSORS = {
    **dict(sorted(ARRAYS.items(), key=lambda item: -np.dtype(item[1][0]).itemsize)),
    "facts": ("|u1", "byte", None),
}

_TEXTS = ("id", "subject", "prompt", "target", "target_true", "relation", "key_id", "time", "residual")
_NUMBERS = ("loss", "nll", "probability")
_FIELDS = {*_TEXTS, *_NUMBERS, "sources", "metadata", "entry", "took", "state"}
STATES = ("live", "suspended", "contested")


@dataclass(frozen=True)
class Sizes:
    """How many entries, keys and bytes of facts a file holds, and how wide its vectors are."""

    entry: int
    key: int
    byte: int
    d1: int
    d2: int

    def shape(self, name: str) -> tuple[int, ...]:
        _, per, width = TENSORS[name]
        return (getattr(self, per), *(() if width is None else (getattr(self, width),)))


def header(sizes: Sizes, metadata: Mapping[str, str]) -> bytes:
    """The bytes before the first tensor's: the length of the JSON, and the JSON, padded to a multiple of 8."""
    described: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, _, _) in TENSORS.items():
        shape = sizes.shape(name)
        end = at + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        described[name] = {"dtype": TYPES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def metadata(generation: int, config: DatabaseConfig, runs: Iterable[tuple[int, tuple[str, ...]]]) -> dict[str, str]:
    """`runs`: how many entries follow one another whose keys were taken behind these prefixes."""
    return {
        "format": MARK,
        "version": VERSION,
        "generation": str(generation),
        "settings": canonical({name: value for name, value in config.to_json().items() if name not in LOCAL}),
        "prefixes": canonical([[number, list(prefixes)] for number, prefixes in runs]),
    }


def plain_line(fact: StoredFact) -> bytes:
    """A fact as `read_facts` reads it: what a user said, without what the database knows."""
    record = Fact.to_dict(fact)
    if record["id"] == fact.identity:
        del record["id"]
    # Several sources stand one a line; an empty one keeps a reader from putting the file's name there.
    return _line({**record, "source": "\n".join(fact.sources)})


def fact_line(fact: StoredFact) -> bytes:
    """A fact's row in one entry with all that the database knows of it. Raises ValueError for an infinite number."""
    record: dict[str, Any] = {name: getattr(fact, name) for name in (*_TEXTS, *_NUMBERS, "took", "entry")}
    record |= {"sources": list(fact.sources), "metadata": dict(fact.metadata)}
    record["state"] = None if fact.state == "live" else fact.state
    return _line({name: value for name, value in record.items() if value is not None and value != [] and value != {}})


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def read_line(line: bytes) -> dict[str, Any]:
    """The arguments of StoredFact that a `fact_line` holds. Raises ValueError saying which rule the line breaks."""
    record = parse_object(line)
    if unknown := sorted(record.keys() - _FIELDS):
        raise ValueError(f"it has an unknown field {unknown[0][:40]!r}")
    for name in ("subject", "prompt", "target", "key_id", "time", "residual"):
        if not record.get(name):
            raise ValueError(f"it has no {name}")
    for name in _TEXTS:
        if not isinstance(record.get(name, ""), str):
            raise ValueError(f"{name} must be a string")
    for name in _NUMBERS:
        if not is_number(record.get(name, 0.0)):
            raise ValueError(f"{name} must be a number")
        if name in record:
            record[name] = float(record[name])
    if not isinstance(record.get("took", False), bool):
        raise ValueError("took must be true or false")
    if record.get("state", "live") not in STATES:
        raise ValueError(f"state must be one of {', '.join(STATES)}")
    if not is_count(record.get("entry")):
        raise ValueError("entry must be the id of an entry")
    sources = record.get("sources", [])
    if not isinstance(sources, list) or not all(isinstance(one, str) and one for one in sources):
        raise ValueError("sources must be a list of names")
    return {**record, "sources": tuple(sources)}
