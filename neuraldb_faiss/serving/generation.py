"""One request for text, and what it is told while it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from neuraldb_faiss.serving.errors import ApiError
from neuraldb_faiss.serving.sampling import Sampling
from neuraldb_faiss.serving.tenants import Tenant


@dataclass(frozen=True, slots=True)
class Fired:
    """One token at which a fact fired. position: index in prompt and answer. facts: as JSON values."""

    position: int
    entry: int
    score: float
    facts: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token of an answer, and how likely the model held it, before temperature and whatever else chooses.

    likeliest: the likeliest tokens there, best first, with the logarithms of their probabilities.
    offset: where the token's text begins in the answer.
    """

    token: int
    logprob: float
    likeliest: Sequence[tuple[int, float]]
    offset: int


@dataclass(frozen=True, slots=True)
class Started:
    """Its first token is made. generation: of the database that answers, None for the model alone."""

    generation: int | None


@dataclass(frozen=True, slots=True)
class Said:
    """chosen: the tokens whose text begins here, or before; none unless they were asked for."""

    text: str
    chosen: Sequence[Chosen] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """reason: "stop" or "length". tokens: the ids of the answer. fired: where that was asked for.
    chosen: tokens without a text at the answer's end."""

    reason: str
    tokens: list[int]
    fired: list[Fired] | None
    chosen: Sequence[Chosen] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    error: ApiError


Event = Started | Said | Ended | Failed
Events = asyncio.Queue[tuple[int, Event]]


@dataclass(eq=False)
class Ask:
    """A prompt to go on with. Made in the server's event loop, answered by the worker's thread through `events`.

    Attributes:
        ids: the prompt's tokens. spaced: the answer goes on behind the prompt's text, so that its first token may begin
            with a space. stops: the answer ends before the first of these. stop_ids: and at one of these tokens.
        likeliest: how many alternatives to tell for each token, None to tell nothing of probabilities.
        explain: tell what fired. fires: whether the database's facts fire in this row.
        index: its number among those that share `events`. cancelled: nobody waits any more.
        tokens: of the answer, so far; the worker's thread adds them.
    """

    ids: list[int]
    max_tokens: int
    sampling: Sampling
    tenant: Tenant | None
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    spaced: bool = True
    likeliest: int | None = None
    explain: bool = False
    fires: bool = True
    index: int = 0
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    events: Events = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def send(self, event: Event) -> None:
        """From the worker's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self.events.put_nowait, (self.index, event))
