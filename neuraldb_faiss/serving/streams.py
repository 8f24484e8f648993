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
    """The answer to one request, in one or several texts: begun by `start`, then read whole or in pieces; dropped at
    its deadline, or when the client is gone."""

    def __init__(self, request: Request, asks: Sequence[Ask], timeout: float) -> None:
        """asks: numbered from 0, with the same `events`."""
        self._request = request
        self._asks = asks
        self._timeout = timeout
        self._deadline = asyncio.get_running_loop().time() + timeout

    async def start(self, engine: Engine) -> int | None:
        """Queue the request and wait until it is begun; the generation that answers it.

        Raises:
            ApiError: too many wait, it took too long, or it failed.
        """
        engine.ask(self._asks)
        _, event = await self._while_wanted(self._next())
        assert isinstance(event, Started)
        return event.generation

    async def whole(self) -> list[Text]:
        """All of its texts. Raises ApiError as `start`."""
        return await self._while_wanted(self._collect())

    async def pieces(self) -> AsyncIterator[tuple[int, Said | Ended]]:
        """Its texts as they come, each with its number, and at last how each ended. Raises ApiError as `start`."""
        running = len(self._asks)
        try:
            while running:
                async with asyncio.timeout_at(self._deadline):
                    index, event = await self._next()
                if isinstance(event, (Said, Ended)):
                    running -= isinstance(event, Ended)
                    yield index, event
        except TimeoutError:
            raise too_slow(self._timeout) from None
        finally:
            self._cancel()

    async def _next(self) -> tuple[int, Event]:
        index, event = await self._asks[0].events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    async def _collect(self) -> list[Text]:
        said: list[list[Said]] = [[] for _ in self._asks]
        ends: dict[int, Ended] = {}
        while len(ends) < len(self._asks):
            index, event = await self._next()
            if isinstance(event, Said):
                said[index].append(event)
            elif isinstance(event, Ended):
                ends[index] = event
        return [Text(said[index], ends[index]) for index in range(len(said))]

    def _cancel(self) -> None:
        for ask in self._asks:
            ask.cancelled = True

    async def _while_wanted(self, what: Awaitable[T]) -> T:
        wanted = asyncio.ensure_future(what)
        gone = asyncio.ensure_future(_gone(self._request))
        try:
            async with asyncio.timeout_at(self._deadline):
                await asyncio.wait({wanted, gone}, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done():
                return wanted.result()
            raise ApiError(499, "the client closed the connection", code="client_closed")
        except BaseException as error:
            self._cancel()
            if isinstance(error, TimeoutError):
                raise too_slow(self._timeout) from None
            raise
        finally:
            wanted.cancel()
            gone.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
