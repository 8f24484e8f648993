"""Waiting for the worker's words, as long as the client waits too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from starlette.requests import Request

from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.errors import ApiError, too_slow
from neuraldb_faiss.serving.generation import Ask, Chosen, Ended, Event, Failed, Said, Started

T = TypeVar("T")


class Text:
    """One whole text.

    Attributes: text. end: how it ended. chosen: its tokens, where their probabilities were asked for.
    """

    def __init__(self, said: Sequence[Said], end: Ended) -> None:
        self.text = "".join(one.text for one in said)
        self.end = end
        self.chosen: list[Chosen] = [*(token for one in said for token in one.chosen), *end.chosen]


class Answer:
    """The answer to one request, in one or several texts: begun by `start`, then read whole or in pieces; what there is
    of it at its deadline is the answer. It is dropped when the client is gone."""

    def __init__(self, request: Request, asks: Sequence[Ask], timeout: float) -> None:
        """asks: numbered from 0, with the same `events`."""
        self._request = request
        self._asks = asks
        self._timeout = timeout
        self._deadline = asyncio.get_running_loop().time() + timeout
        self._said: list[list[Said]] = [[] for _ in asks]
        self._ends: dict[int, Ended] = {}

    async def start(self, engine: Engine) -> int | None:
        """Queue the request and wait for its first token; the generation that answers it.

        Raises:
            ApiError: too many wait, it took too long, or it failed.
        """
        engine.ask(self._asks)
        try:
            _, event = await self._while_wanted(self._next())
        except TimeoutError:
            raise too_slow(self._timeout) from None
        assert isinstance(event, Started)
        return event.generation

    async def whole(self, *, to_the_end: bool = False) -> list[Text]:
        """All of its texts.

        Args:
            to_the_end: a part of one is no answer.

        Raises:
            ApiError: it failed, or took too long where a part will not do.
        """
        try:
            await self._while_wanted(self._collect())
        except TimeoutError:
            if to_the_end:
                raise too_slow(self._timeout) from None
            await self._cut()
        return [Text(said, self._ends[index]) for index, said in enumerate(self._said)]

    async def pieces(self) -> AsyncIterator[tuple[int, Said | Ended]]:
        """Its texts as they come, each with its number, and at last how each ended. Raises ApiError where it fails."""
        try:
            while len(self._ends) < len(self._asks):
                try:
                    async with asyncio.timeout_at(self._deadline):
                        index, event = await self._next()
                except TimeoutError:
                    break
                for piece in self._noted(index, event):
                    yield index, piece
            for index, piece in await self._cut():
                yield index, piece
        finally:
            self._cancel()

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._asks[0].events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    async def _collect(self) -> None:
        while len(self._ends) < len(self._asks):
            self._noted(*await self._next())

    async def _cut(self) -> list[tuple[int, Said | Ended]]:
        """End the texts that have not ended, with what there is of them; what was not told of them yet."""
        self._cancel()
        await asyncio.sleep(0)  # what the worker has told arrives
        found: list[tuple[int, Said | Ended]] = []
        while not self._asks[0].events.empty():
            index, event = await self._next()
            found += ((index, piece) for piece in self._noted(index, event))
        for index, ask in enumerate(self._asks):
            if index not in self._ends:
                found += ((index, piece) for piece in self._noted(index, Ended("length", list(ask.tokens), None)))
        return found

    def _noted(self, index: int, event: Event) -> list[Said | Ended]:
        """The event, kept, if it is one that clients are told."""
        if isinstance(event, Said):
            self._said[index].append(event)
        elif isinstance(event, Ended) and event.reason != "cancelled":
            self._ends[index] = event
        else:
            return []
        return [event]

    def _cancel(self) -> None:
        for ask in self._asks:
            ask.cancelled = True

    async def _while_wanted(self, what: Awaitable[T]) -> T:
        """What it gives. Raises ApiError where the client is gone, TimeoutError at the deadline; nothing is wanted any
        more then."""
        wanted = asyncio.ensure_future(what)
        gone = asyncio.ensure_future(_gone(self._request))
        try:
            async with asyncio.timeout_at(self._deadline):
                await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            raise ApiError(499, "the client closed the connection", code="client_closed")
        except BaseException:
            self._cancel()
            raise
        finally:
            wanted.cancel()
            gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
