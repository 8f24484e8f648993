"""Waiting for the worker's words, as long as the client waits too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import Request

from neuraldb_faiss.serving.asks import Ask, Ended, Event, Failed, Said, Started
from neuraldb_faiss.serving.engine import Engine
from neuraldb_faiss.serving.errors import ApiError, too_slow

T = TypeVar("T")


class Answer:
    """The answer to one request: begun by `start`, then read whole or in pieces; dropped at its deadline, or when the
    client is gone."""

    def __init__(self, request: Request, ask: Ask, timeout: float) -> None:
        self._request = request
        self._ask = ask
        self._timeout = timeout
        self._deadline = asyncio.get_running_loop().time() + timeout

    async def start(self, engine: Engine) -> int | None:
        """Queue the request and wait until it is begun; the generation that answers it.

        Raises:
            ApiError: too many wait, it took too long, or it failed.
        """
        engine.ask(self._ask)
        event = await self._while_wanted(self._next())
        assert isinstance(event, Started)
        return event.generation

    async def whole(self) -> tuple[str, Ended]:
        """All of its text. Raises ApiError as `start`."""
        return await self._while_wanted(self._collect())

    async def pieces(self) -> AsyncIterator[str | Ended]:
        """Its text as it comes, and at last how it ended. Raises ApiError as `start`."""
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    event = await self._next()
                if isinstance(event, Ended):
                    yield event
                    return
                if isinstance(event, Said):
                    yield event.text
        except TimeoutError:
            raise too_slow(self._timeout) from None
        finally:
            self._ask.cancelled = True

    async def _next(self) -> Event:
        event = await self._ask.events.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    async def _collect(self) -> tuple[str, Ended]:
        text: list[str] = []
        while not isinstance(event := await self._next(), Ended):
            if isinstance(event, Said):
                text.append(event.text)
        return "".join(text), event

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
            self._ask.cancelled = True
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
