"""Wordings of relations: how facts that name one are asked for and stated."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from neuraldb_faiss.errors import FactError

MARK = "{}"
TARGET = "{target}"
_TEXTS = ("label", "cues", "of", "gives", "prompt", "statement")
_LISTS = ("paraphrases", "questions")


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation in words; `{}` is the subject, once in every text.

    Attributes:
        id: as facts name it ("P36"). label: its name in English. cues: other words that people ask for it with.
        of, gives: the kinds of its subjects and of its targets ("person", "place", ...); "" where it is not said.
        prompt, paraphrases: texts that the target continues; `prompt` may be "".
        statement: a sentence with `{target}` for the target; "" where there is none.
        questions: as people ask in a chat.
    """

    id: str
    label: str
    cues: str = ""
    of: str = ""
    gives: str = ""
    prompt: str = ""
    statement: str = ""
    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()


class Relations:
    """Relations by id and by label, whatever the case."""

    def __init__(self, relations: Mapping[str, Relation]) -> None:
        self.by_id: Mapping[str, Relation] = dict(relations)
        self._names = {one.label.casefold(): one for one in relations.values()}
        self._names |= {one.id.casefold(): one for one in relations.values()}

    def find(self, name: str | None) -> Relation | None:
        """The relation that a fact's `relation` names, by its id, its label or the end of Wikidata's address; None for
        one that has no wording."""
        if not name:
            return None
        return self._names.get(name.strip().rsplit("/", 1)[-1].casefold())

    def of(self, kind: str) -> list[Relation]:
        """The relations of subjects of this kind, in the file's order; none for ""."""
        return [one for one in self.by_id.values() if kind and one.of == kind]


@cache
def own_relations() -> Relations:
    """The wordings that come with the package: `relations.toml` beside this module."""
    text = files(__package__).joinpath("relations.toml").read_text(encoding="utf-8")
    return Relations(_parse(text, "relations.toml"))


def read_relations(path: str | Path) -> Relations:
    """The wordings of a TOML file, and the package's own for relations that it does not name.

    A table a relation, as in `relations.toml`: `label`, `cues`, `of`, `gives`, `prompt`, `statement` (texts),
    `paraphrases`, `questions` (lists of texts); at least one of the last two. `{}` stands for the subject, once in
    every text.

    Raises:
        FactError: no such file, no TOML, an unknown field, or a text that breaks a rule; file and relation are named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise FactError(f"{path} is not UTF-8: save the templates as UTF-8") from None
    except OSError as error:
        raise FactError(f"the templates {path} cannot be read: {error.strerror}") from None
    return Relations({**own_relations().by_id, **_parse(text, str(path))})


def _parse(text: str, place: str) -> dict[str, Relation]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FactError(f"{place} is not TOML: {error}") from None
    return {name: _relation(name, table, f"{place}, relation {name}") for name, table in tables.items()}


def _relation(name: str, table: Any, where: str) -> Relation:
    if not isinstance(table, dict):
        raise FactError(f'{where}: write a table, as in [{name}], with questions = ["Who leads {{}}?"]')
    for field in table:
        if field not in (*_TEXTS, *_LISTS):
            raise FactError(f"{where}: unknown field {field!r}; it has {', '.join((*_TEXTS, *_LISTS))}")
    for field in _TEXTS:
        if not isinstance(table.get(field, ""), str):
            raise FactError(f"{where}: {field} must be a text")
    for field in _LISTS:
        found = table.get(field, [])
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise FactError(f"{where}: {field} must be a list of texts")
    if not any(table.get(field) for field in _LISTS):
        raise FactError(f"{where}: give it questions or paraphrases")
    templates = [(field, one) for field in _LISTS for one in table.get(field, [])]
    templates += [(field, table[field]) for field in ("prompt", "statement") if table.get(field)]
    for field, one in templates:
        if one.count(MARK) != 1:
            raise FactError(f"{where}: the subject, {{}}, must stand once in every text: {field} {one[:80]!r}")
        if (one.count(TARGET) == 1) != (field == "statement"):
            rule = "must hold {target} once" if field == "statement" else "must not hold {target}"
            raise FactError(f"{where}: {field} {one[:80]!r} {rule}")
    return Relation(
        id=name,
        label=table.get("label", name),
        cues=table.get("cues", ""),
        of=table.get("of", ""),
        gives=table.get("gives", ""),
        prompt=table.get("prompt", ""),
        statement=table.get("statement", ""),
        paraphrases=tuple(table.get("paraphrases", [])),
        questions=tuple(table.get("questions", [])),
    )
