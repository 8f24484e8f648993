"""Evaluation cases: a fact and the prompts it is judged by."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import EvaluationError, FactError
from neuraldb_faiss.facts import Fact, read_numbered
from neuraldb_faiss.facts.metadata import clip
from neuraldb_faiss.research.datasets.registry import DATASETS

Pair = tuple[str, str]  # a prompt, and a text to follow it


@dataclass(frozen=True, slots=True)
class Case:
    """One fact and the prompts it is judged by.

    Attributes:
        fact: prompt and target are the edit; target_true is the old object (zsRE: None where the target is true).
        paraphrases: prompts that ask for the same fact.
        neighbours: (prompt, its own true answer) about other subjects, that the edit must not touch.
        relations: (prompt, true answer) about other relations of the same subject, that the edit must not touch.
        portability: (prompt, answer) that follow from the edit, or name the subject otherwise.
        generation: prompts to continue for fluency and consistency; empty where the record has none.
        references: texts about the target's attribute, for consistency; empty where there are none.
        compared: P(new) is compared with P(true) (eqs. 13-15); else the share of arg-max tokens counts (eqs. 17-19).
    """

    fact: Fact
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[Pair, ...] = ()
    relations: tuple[Pair, ...] = ()
    portability: tuple[Pair, ...] = ()
    generation: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    compared: bool = False

    @property
    def id(self) -> str:
        """The fact's identity: the same in every run and database."""
        return self.fact.identity

    @property
    def truth(self) -> str:
        """The old object; `read_cases` refuses a CounterFact record without one."""
        return self.fact.target_true or ""


def read_cases(path: str | Path, dataset: str, *, references: str | Path | None = None) -> list[Case]:
    """Every case of a file, in its order; a fact that comes twice counts once.

    Args:
        path: JSON lines or a JSON array, plain or gzipped, or datasets:NAME[:SPLIT], as `read_facts` takes them.
        dataset: a name in `registry.DATASETS`.
        references: texts about objects for consistency (see `read_references`); else a record's attribute_prompts,
            each continued with the target, are used: sentences that are true of other subjects.

    Raises:
        EvaluationError: unknown dataset; a record without a field that its metrics need, named with file and line.
        FactError: a record that is no fact.
    """
    kind = DATASETS[dataset]
    make = kind.make()
    texts = read_references(references) if references is not None else {}
    cases: dict[str, Case] = {}
    for line, fact in read_numbered(path, kind.format):
        try:
            case = make(fact, texts)
        except FactError as error:
            place = "row" if str(path).startswith("datasets:") else "line"
            raise EvaluationError(f"{path}, {place} {line}: {error}") from None
        cases.setdefault(case.id, case)
    if not cases:
        raise EvaluationError(f"{path} holds no cases")
    return list(cases.values())


def in_place(cases: Sequence[Case], facts: Iterable[Fact]) -> list[Case]:
    """The cases whose fact, with the same target, is among `facts`: only these have been edited."""
    targets = {fact.identity: fact.target for fact in facts}
    return [case for case in cases if targets.get(case.id) == case.fact.target]


def probes(records: Sequence[Any], prompt: str, answer: str) -> tuple[Pair, ...]:
    """(prompt, first answer) of each record; an answer may be a text, or (lists of) lists of texts."""
    pairs = []
    for record in records:
        asked, told = (record.get(prompt), record.get(answer)) if isinstance(record, dict) else (None, None)
        while isinstance(told, list) and told:
            told = told[0]
        if not all(isinstance(one, str) and one.strip() for one in (asked, told)):
            raise FactError(f"a probe has no {prompt!r} and {answer!r}: {clip(str(record), 80)}")
        pairs.append((str(asked), str(told)))
    return tuple(dict.fromkeys(pairs))


def need(fact: Fact, key: str, field: str) -> tuple[str, ...]:
    """`strings`, of which there must be some; `field` is the name that flat records give them."""
    values = strings(fact, key)
    if not values:
        raise FactError(f"field {key!r} (or {field!r}) is missing; the metrics need it")
    return values


def strings(fact: Fact, key: str) -> tuple[str, ...]:
    """The texts that a fact's metadata hold under `key`. Raises FactError where they are no list of texts."""
    values = fact.metadata.get(key) or []
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, list) or not all(isinstance(one, str) and one.strip() for one in values):
        raise FactError(f"field {key!r} must be a list of texts, none empty")
    return tuple(values)


def read_references(path: str | Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """(relation, object) -> texts about it, from JSON lines (plain or gzipped).

    A line has the relation (`relation` or `predicate_id`), the object (`target` or `obj_label`) and its texts
    (`texts` or `evidences`).

    Raises:
        EvaluationError: no such file, or a line without these, named.
    """
    found: dict[tuple[str, str], list[str]] = {}
    place = Path(path)
    try:
        opener: Any = gzip.open if place.read_bytes()[:2] == b"\x1f\x8b" else open
        with opener(place, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    relation = record.get("relation") or record["predicate_id"]
                    target = record.get("target") or record["obj_label"]
                    texts = record["texts"] if "texts" in record else record["evidences"]
                    found.setdefault((relation, target), []).extend(str(one) for one in texts)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise EvaluationError(
                        f"{path}, line {number}: no relation, target and texts ({type(error).__name__}: {error})"
                    ) from None
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read: {error}") from None
    return {key: tuple(dict.fromkeys(texts)) for key, texts in found.items()}


def sha256(path: str | Path) -> str | None:
    """Of a file's bytes; None for what is no file, a Hugging Face dataset's name say."""
    place = Path(path)
    if not place.is_file():
        return None
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
