"""Bodies of requests with the statements of the facts that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuraldb_faiss.errors import CompactedError, FactError, NeuralDBError
from neuraldb_faiss.grounding import Grounder
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.errors import ApiError, unreadable
from neuraldb_faiss.store import StoredFact

_TRIES = 3  # where a compaction takes the generation away that is being read


@dataclass(frozen=True)
class Stated:
    """A body as it goes upstream. facts: those that it states. generation: of the database that they are of."""

    body: dict[str, Any]
    facts: tuple[StoredFact, ...] = ()
    generation: int | None = None


def state(database: Database, body: Mapping[str, Any]) -> Stated:
    """The facts of the database's newest generation that a body's messages or prompts name, stated in them.

    Prompts of token ids stay as they are: no statement can be put into them.

    Raises:
        ApiError: the messages cannot be read (400), or the database cannot (503).
    """
    for tries in range(_TRIES):
        try:
            with database.statements.newest() as newest:
                changed, facts = _stated(newest.grounder, body)
                if newest.generation != database.generation:
                    database.generation, database.facts = newest.generation, newest.facts
                return Stated({**body, **changed}, tuple(facts), newest.generation)
        except FactError as error:
            raise ApiError(400, str(error), param="messages") from error
        except NeuralDBError as error:
            if not isinstance(error, CompactedError) or tries == _TRIES - 1:
                raise unreadable(database.name, error) from error
    raise AssertionError


def _stated(grounder: Grounder, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[StoredFact]]:
    """The fields that change, and the facts that are stated in them."""
    if "messages" in body:
        grounded = grounder.ground(body["messages"])
        return {"messages": grounded.prompt}, list(grounded.facts)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        grounded = grounder.ground(prompt)
        return {"prompt": grounded.prompt}, list(grounded.facts)
    if isinstance(prompt, list) and any(isinstance(one, str) for one in prompt):
        each = [grounder.ground(one) if isinstance(one, str) else None for one in prompt]
        prompts = [one if found is None else found.prompt for one, found in zip(prompt, each, strict=True)]
        return {"prompt": prompts}, [fact for found in each if found is not None for fact in found.facts]
    return {}, []
