"""How facts reach a request, as residuals or as statements in its prompt; and the prompt that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuraldb_faiss.config import resolve_delivery
from neuraldb_faiss.errors import CompactedError, NeuralDBError
from neuraldb_faiss.grounding import Grounded, Grounder
from neuraldb_faiss.grounding.limits import MAX_FACTS, MAX_TOKENS
from neuraldb_faiss.serving.contents import Prompt, Turn
from neuraldb_faiss.serving.databases import Database
from neuraldb_faiss.serving.delivery_headers import FIELD, delivery_headers
from neuraldb_faiss.serving.encoding import Prompts
from neuraldb_faiss.serving.errors import ApiError, unreadable
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.store import StoredFact

_TRIES = 3  # where a compaction takes the generation away that is being read


@dataclass(frozen=True, slots=True)
class Room:
    """What the answers to one request may take.

    Attributes:
        wanted: tokens of an answer, as asked. default: where nothing is asked (None: what fits).
        answers: how many answers, to all prompts together.
    """

    wanted: int | None
    default: int | None
    answers: int = 1


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as the model gets it.

    Attributes:
        ids: its tokens. room: tokens that its answer may have.
        delivery: "residual", "text" or "both"; None for the model alone.
        facts: those that are stated in it.
    """

    ids: list[int]
    room: int
    delivery: str | None = None
    facts: tuple[StoredFact, ...] = ()

    @property
    def fires(self) -> bool:
        """Whether facts may fire in it and in its answer."""
        return self.delivery != "text"


def headers_of(prepared: Sequence[Prepared]) -> dict[str, str]:
    """What the answer's header says of how facts reached these prompts."""
    return delivery_headers((one.delivery for one in prepared), (fact for one in prepared for fact in one.facts))


class Deliveries:
    """Prepares the prompts of requests; threads may share it."""

    def __init__(self, prompts: Prompts, metrics: Metrics, default: str | None) -> None:
        """default: the server's delivery, None for each database's own."""
        self._prompts, self._metrics, self._default = prompts, metrics, default

    def prepare(
        self, tenant: Database | None, prompt: Prompt | Sequence[Turn], asked: str | None, room: Room,
        variables: Mapping[str, Any] | None = None,
    ) -> Prepared:  # fmt: skip
        """A prompt, or the messages of a chat, with the statements that go into it.

        The facts are those of the newest generation now. They get the room that the prompt and its answer leave: what
        does not fit is left out, and never a part of the prompt.

        Args:
            asked: the request's delivery, None for the server's or the database's. variables: of the chat template.

        Raises:
            ApiError: what the client sent cannot be answered, or the database cannot be read.
        """
        ids = self._encoded(prompt, variables)
        left = self._prompts.room(len(ids), room.wanted, room.default)
        if tenant is None:
            return Prepared(ids, left)
        if _is_ids(prompt):
            if asked in ("text", "both"):
                told = f"the prompt is token ids, into which no statement can be put: send a text, or no {FIELD}"
                raise ApiError(400, told, param="prompt")
            return Prepared(ids, left, "residual")
        wanted = asked or self._default
        if wanted == "residual":
            return Prepared(ids, left, wanted)
        reserve = left if room.wanted or room.default else (left + 1) // 2
        budget = self._prompts.most(reserve, room.answers)
        said: Any = prompt

        def stated(grounder: Grounder) -> tuple[list[int], tuple[StoredFact, ...]]:
            most = MAX_FACTS
            while most > 0 and budget > len(ids):
                with self._prompts.tokenizer() as tokenizer:
                    grounded = grounder.ground(
                        said, tokenizer=tokenizer, max_facts=most, max_tokens=min(MAX_TOKENS, budget - len(ids))
                    )
                if not grounded.facts:
                    break
                longer = self._with(grounded, prompt, variables)
                if len(longer) <= budget:
                    return longer, grounded.facts
                most = len(grounded.facts) - 1
            return ids, ()

        delivery, longer, facts = self._delivered(tenant, wanted, said, stated, ids)
        self._metrics.grounded(tenant, len(facts))
        return Prepared(longer, self._prompts.room(len(longer), room.wanted, room.default), delivery, facts)

    def _delivered(
        self, tenant: Database, wanted: str | None, prompt: Any, stated: Callable[[Grounder], Any], ids: list[int]
    ) -> tuple[str, list[int], tuple[StoredFact, ...]]:
        """How the newest generation reaches a prompt, and what `stated` makes of it where it is stated; else `ids`."""
        for tries in range(_TRIES):
            try:
                with tenant.statements.newest() as newest:
                    residuals = newest.config.has_residuals
                    chosen = wanted or newest.config.delivery
                    own = chosen == "auto" and residuals and newest.grounder.is_own_prompt(prompt)
                    how = resolve_delivery(chosen, residuals=residuals, own_prompt=own)
                    return how, *((ids, ()) if how == "residual" else stated(newest.grounder))
            except ApiError:
                raise
            except NeuralDBError as error:
                if not isinstance(error, CompactedError) or tries == _TRIES - 1:
                    raise unreadable(tenant.name, error) from error
        raise AssertionError

    def _encoded(self, prompt: Any, variables: Mapping[str, Any] | None) -> list[int]:
        if isinstance(prompt, str) or _is_ids(prompt):
            return self._prompts.of_prompt(prompt)
        return self._prompts.of_messages(prompt, variables)

    def _with(self, grounded: Grounded, prompt: Any, variables: Mapping[str, Any] | None) -> list[int]:
        if isinstance(prompt, str):
            return self._prompts.behind(grounded.text, prompt)
        return self._prompts.of_messages(grounded.prompt, variables, any_length=True)


def _is_ids(prompt: Any) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], int)
