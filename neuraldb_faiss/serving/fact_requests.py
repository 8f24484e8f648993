"""Bodies of requests that change a database, checked. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.fact import MARK
from neuraldb_faiss.serving.body_schemas import BACK, CHANGE, fact_forms
from neuraldb_faiss.store import StoredFact

_OPTIONAL = ("target_true", "relation", "source")


class Facts(BaseModel):
    """Facts as `Fact.from_dict` reads them; a list alone will do, or one fact alone."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=fact_forms)

    facts: list[dict[str, Any]] = Field(min_length=1)
    on_conflict: Literal["error", "first", "last"] = "error"

    @model_validator(mode="before")
    @classmethod
    def _of_fewer_words(cls, given: Any) -> Any:
        if isinstance(given, list):
            return {"facts": given}
        if isinstance(given, dict) and "facts" not in given and "subject" in given:
            return {"facts": [given]}
        return given


class Change(BaseModel):
    """Fields of a fact that are to be others. `metadata` replaces all of it; statement, aliases and questions are those
    of the metadata, one by one."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [CHANGE]})

    subject: str | None = None
    prompt: str | None = None
    target: str | None = None
    statement: str | None = None
    aliases: list[str] | None = None
    questions: list[str] | None = None
    target_true: str | None = None
    relation: str | None = None
    source: str | None = None
    metadata: dict[str, Any] | None = None

    def applied_to(self, old: StoredFact) -> Fact:
        """The changed fact. Raises FactError where nothing is to change, or it breaks a rule of facts."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if not given:
            raise FactError(f"nothing is to change: give at least one of {', '.join(Change.model_fields)}")
        was = old.fact()
        metadata: dict[str, Any] = dict(given.get("metadata", was.metadata) or {})
        if "metadata" not in given and not _still_said(metadata.get("statement"), given):
            metadata.pop("statement", None)
        for name in ("statement", "aliases", "questions"):
            if name in given:
                metadata[name] = given[name]
        metadata = {name: value for name, value in metadata.items() if value is not None}
        fields: Mapping[str, Any] = {
            "subject": was.subject, "prompt": was.template, "target": was.target,
            **{name: getattr(was, name) for name in _OPTIONAL},
        }  # fmt: skip
        changed = {name: given.get(name, value) for name, value in fields.items()}
        return Fact(**changed, id=old.id, metadata=metadata)


def _still_said(statement: Any, changed: Mapping[str, Any]) -> bool:
    """Whether a statement written for a fact fits it when these fields have changed: it then has their places in it."""
    places = {"subject": MARK, "target": "{target}"}
    return isinstance(statement, str) and all(mark in statement for name, mark in places.items() if name in changed)


class Back(BaseModel):
    """The generation to go back to."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [BACK]})

    generation: int = Field(ge=1, lt=2**63, strict=True)
