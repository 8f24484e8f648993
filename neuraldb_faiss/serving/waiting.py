"""Requests that wait for their turn."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence

from neuraldb_faiss.serving.generation import Ask
from neuraldb_faiss.serving.settings import Limits
from neuraldb_faiss.serving.tenants import Tenant


class Waiting:
    """Requests, each of one or several texts of one database. First come, first served, but databases take turns: the
    one with the fewest texts running goes first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: deque[Sequence[Ask]] = deque()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def rows(self) -> int:
        """Texts that wait."""
        return sum(map(len, self._requests))

    @property
    def tenants(self) -> set[Tenant]:
        """The databases that they ask."""
        return {asks[0].tenant for asks in self._requests if asks[0].tenant is not None}

    def add(self, asks: Sequence[Ask]) -> None:
        self._requests.append(asks)

    def take(self, running: Sequence[Ask], held: Collection[Tenant], *, prompt_tokens: int) -> list[Ask]:
        """The texts of the requests whose turn it is, as many as there is room for; they wait no longer.

        Args:
            running: the texts that they join. held: databases whose requests must go on waiting.
            prompt_tokens: of all that are taken together, with their padding, unless it is a single request.
        """
        self._requests = deque(asks for asks in self._requests if not any(ask.cancelled for ask in asks))
        taken: list[Ask] = []
        counts = Counter(ask.tenant for ask in running)
        left = [asks for asks in self._requests if asks[0].tenant not in held]
        while left:
            asks = min(left, key=lambda one: counts[one[0].tenant])  # of those alike, the first
            if not self._fit([*running, *taken], asks) or (
                taken and _places([*taken, *asks], answers=False) > prompt_tokens
            ):
                break
            left.remove(asks)
            self._requests.remove(asks)
            taken += asks
            counts[asks[0].tenant] += len(asks)
        return taken

    def _fit(self, running: list[Ask], asks: Sequence[Ask]) -> bool:
        """Whether these may join; one request alone always may."""
        together = [*running, *asks]
        fits = len(together) <= self._limits.batch and _places(together, answers=True) <= self._limits.batch_tokens
        return fits or not running


def _places(asks: Sequence[Ask], *, answers: bool) -> int:
    """Tokens of these texts, padding counted, and of their answers, as long as they may be."""
    return len(asks) * max(len(ask.ids) + answers * ask.max_tokens for ask in asks)
