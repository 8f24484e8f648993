"""One request for text, and what it is told while it is answered."""

from __future__ import annotations

import asyncio
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
class Started:
    """Its batch runs. generation: of the database that answers, None for the model alone."""

    generation: int | None


@dataclass(frozen=True, slots=True)
class Said:
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    """reason: "stop" or "length". tokens: the ids of the answer. fired: where that was asked for."""

    reason: str
    tokens: list[int]
    fired: list[Fired] | None


@dataclass(frozen=True, slots=True)
class Failed:
    error: ApiError


Event = Started | Said | Ended | Failed


@dataclass(eq=False)
class Ask:
    """A prompt to go on with. Made in the server's event loop, answered by the worker's thread through `events`.

    Attributes:
        ids: the prompt's tokens. spaced: the answer goes on behind the prompt's text, so that its first token may begin
            with a space. stops: the answer ends before the first of these. explain: tell what fired.
        cancelled: nobody waits any more.
    """

    ids: list[int]
    max_tokens: int
    sampling: Sampling
    tenant: Tenant | None
    stops: tuple[str, ...] = ()
    spaced: bool = True
    explain: bool = False
    cancelled: bool = False
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def send(self, event: Event) -> None:
        """From the worker's thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
