"""Clients that connect and then dawdle, cheat or never read: they are let go, and others are answered meanwhile."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from helpers.serving import PROMPT, Serve, until
from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving import connections
from neuraldb_faiss.serving.connections import ACCEPTED_AT_ONCE, Connection, connection_limit
from neuraldb_faiss.serving.logs import Sparing, sparing_logs
from neuraldb_faiss.serving.server import bind
from neuraldb_faiss.serving.settings import Limits

from .test_command import started

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: "
WHOLE = b"GET /quick HTTP/1.1\r\nHost: localhost\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"
HALF_BODY = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + JSON + b"Content-Length: 99\r\n\r\n{"


class App:
    """/quick answers at once, /held when it is let, /large with more than is buffered, /body when the body is whole."""

    def __init__(self) -> None:
        self.held = 0
        self.let = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size = 2
        if scope["path"] == "/held":
            self.held += 1
            while not self.let.is_set():
                await asyncio.sleep(0.01)
        if scope["path"] == "/large":
            size = 64 << 20
        while scope["path"] == "/body":
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            if not message.get("more_body"):
                break
        head = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        for at in range(0, size, 1 << 20):
            more = at + (1 << 20) < size
            await send({"type": "http.response.body", "body": b"." * min(size, 1 << 20), "more_body": more})


Client = Callable[[bytes], socket.socket]


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def connect(app: App) -> Iterator[Callable[..., Client]]:
    """`connect(most=5, header=0.3)` starts a server with these bounds; what it gives connects a client and sends."""
    with ExitStack() as stack:

        def start(most: int = 50, **limits: Any) -> Client:
            address = stack.enter_context(running(app, most, Limits(**limits)))

            def client(first: bytes) -> socket.socket:
                one = stack.enter_context(socket.create_connection(address, timeout=20))
                one.sendall(first)
                return one

            return client

        yield start
        app.let.set()


@contextmanager
def running(app: App, most: int, limits: Limits) -> Iterator[tuple[str, int]]:
    protocol: Any = partial(Connection, limits=limits, most=most)
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=protocol, loop="asyncio", log_config=None, lifespan="off", timeout_keep_alive=limits.idle,
            timeout_graceful_shutdown=1, backlog=ACCEPTED_AT_ONCE,
        )
    )  # fmt: skip
    with bind("127.0.0.1", 0) as bound:
        thread = threading.Thread(target=partial(server.run, sockets=[bound]))
        thread.start()
        try:
            until(lambda: server.started)
            yield bound.getsockname()
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def rest(one: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    told = b""
    try:
        while part := one.recv(1 << 16):
            told += part
    except ConnectionResetError:
        pass
    return told


def quick(one: socket.socket) -> bool:
    """Whether it gets the whole answer of /quick or /held."""
    told = b""
    while not told.endswith(b"\r\n\r\n..") and (part := one.recv(1000)):
        told += part
    return told.startswith(b"HTTP/1.1 200")


def error(answer: bytes) -> dict[str, Any]:
    return dict(json.loads(answer.partition(b"\r\n\r\n")[2])["error"])


def open_still(one: socket.socket) -> bool:
    return not select.select([one], [], [], 0)[0]


# ---- deadlines


@pytest.mark.parametrize("sent", [b"", b"GET", HALF])
def test_a_header_that_does_not_come_whole(connect: Callable[..., Client], sent: bytes) -> None:
    answer = rest(connect(header=0.3)(sent))
    assert answer.startswith(b"HTTP/1.1 408") and "0.3 seconds" in error(answer)["message"]


def test_a_header_that_comes_drop_by_drop(connect: Callable[..., Client]) -> None:
    one = connect(header=0.5)(HALF)
    end = time.monotonic() + 20
    while open_still(one):
        assert time.monotonic() < end
        one.sendall(b"a")
        time.sleep(0.05)
    assert rest(one).startswith(b"HTTP/1.1 408")


def test_a_second_request_whose_header_does_not_come_whole(connect: Callable[..., Client]) -> None:
    one = connect(header=0.3, idle=1)(WHOLE + HALF)
    told = rest(one)
    assert told.startswith(b"HTTP/1.1 200") and told.count(b"HTTP/1.1 200") == 1
    two = connect(header=0.3, idle=1)(WHOLE)
    assert quick(two)
    two.sendall(HALF)
    assert rest(two).startswith(b"HTTP/1.1 408")


def test_a_connection_without_requests_is_not_kept(connect: Callable[..., Client]) -> None:
    client = connect(idle=1)
    one = client(WHOLE)
    told = rest(one)
    assert told.startswith(b"HTTP/1.1 200") and told.count(b"HTTP/1.1") == 1


def test_an_answer_that_is_not_read(connect: Callable[..., Client]) -> None:
    """Neither one of which more is to come, nor one that was written whole, nor many that were asked for ahead."""
    client = connect(header=0.2, timeout=0.2, idle=1)
    many = [
        client(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        client(b"GET /large HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
        client(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n" * 9),
    ]
    time.sleep(1.0)
    for one in many:
        one.settimeout(5)
        assert len(rest(one)) < 64 << 20


def test_a_request_in_time_is_answered_however_many_come_after_it(connect: Callable[..., Client]) -> None:
    one = connect(header=0.4, idle=1)(b"")
    for _ in range(6):
        time.sleep(0.1)
        one.sendall(WHOLE)
        assert quick(one)


# ---- too many


def test_the_longest_waited_for_makes_room(connect: Callable[..., Client], app: App) -> None:
    client = connect(most=4)
    busy = client(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: app.held == 1)
    slow = []
    for sent in (HALF, HALF_BODY.replace(b"/v1/completions", b"/body"), b""):
        slow.append(client(sent))
        time.sleep(0.05)
    for number in range(3):
        new = client(WHOLE)
        assert quick(new)
        assert rest(slow[number]) == b""
        time.sleep(0.05)
    assert open_still(busy)  # a whole request is never let go for another
    app.let.set()
    assert quick(busy)


def test_where_all_are_being_answered_the_next_is_told_so(connect: Callable[..., Client], app: App) -> None:
    client = connect(most=3)
    busy = [client(b"GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n") for _ in range(3)]
    until(lambda: app.held == 3)
    answer = rest(client(WHOLE))
    assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer.lower()
    assert error(answer)["code"] == "too_many_connections"
    app.let.set()
    assert all(quick(one) for one in busy)


def test_the_limit_leaves_descriptors_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(files: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
        return connection_limit()

    used = len(os.listdir("/dev/fd"))
    assert 30 <= limit(used + 80) <= 50
    assert 700 <= limit(used + 1000) <= 750
    assert limit(1 << 20) == limit(resource.RLIM_INFINITY) == connections._MOST
    with pytest.raises(ServeError, match="ulimit -n"):
        limit(used + 20)


def test_at_a_low_limit_of_files_many_slow_clients_keep_nobody_out(folder: Path, paths: dict[str, Path]) -> None:
    """Half a header, then half a body: 200 connections each, where the process may open 128 files."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)); "
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    fact = [{"subject": "Apple", "prompt": "{} was founded by", "target": "Rome"}]
    # Every request has a line in the log from the level info on; what else is said must not fill it.
    arguments = (f"a={paths['a']}", "--model", folder / "tiny", "--token", "secret", "--log-level", "warning")
    with started(*arguments, before=code) as (process, url), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        for sent in (HALF, HALF_BODY):
            for _ in range(200):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=20)).sendall(sent)
            for _ in range(3):
                assert httpx2.get(f"{url}/health", timeout=20).status_code == 200
            assert httpx2.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
        job = httpx2.post(f"{url}/facts", json=fact, headers={"Authorization": "Bearer secret"}, timeout=60)
        until(lambda: httpx2.get(f"{url}{job.headers['Location']}", timeout=20).json()["state"] == "succeeded")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and process.stderr is not None
        assert len(process.stderr.read()) < 20_000


# ---- framing


@pytest.mark.parametrize(
    "framing",
    [
        b"HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0",
        b"HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1\r\nTransfer-Encoding: identity",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked, identity",
        b"HTTP/1.1\r\nTransfer-Encoding : chunked",
        b"HTTP/1.1\r\nContent-Length: +4",
        b"HTTP/1.0\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1\r\nHost: localhost",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(serve: Serve, framing: bytes) -> None:
    """And what follows it on its connection is not taken for a request."""
    served = serve()
    request, _, more = framing.partition(b"\r\n")
    smuggled = b"0\r\n\r\nGET /facts HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(served.address, timeout=20) as one:
        one.sendall(b"POST /v1/completions " + request + b"\r\nHost: localhost\r\n" + more + b"\r\n\r\n" + smuggled)
        answer = rest(one)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1 ") == 1
    assert error(answer)["type"] == "invalid_request_error"


def test_a_body_that_breaks_off_in_the_wrong_way_is_no_error_of_ours(
    connect: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    client = connect()
    chunked = b"POST /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert rest(client(chunked + b"no size\r\n")).startswith(b"HTTP/1.1 400")
    one = client(chunked.replace(b"/body", b"/quick"))
    assert quick(one)  # before the body came
    one.sendall(b"no size\r\n")
    rest(one)
    assert rest(client(b"\x16\x03\x01 no HTTP\r\n\r\n")).startswith(b"HTTP/1.1 400")
    assert quick(client(WHOLE))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


# ---- the log


def test_messages_that_are_alike_are_kept_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("uvicorn.error")
    with sparing_logs():
        for number in range(5000):
            logger.warning("too many: %d\nand more", number)
        logger.warning("another one")
    assert [len([r for r in caplog.records if r.msg.startswith(one)]) for one in ("too many", "another")] == [10, 1]
    logger.warning("too many: %d", 0)
    assert len(caplog.records) == 12  # afterwards all are kept


def test_an_event_loop_without_descriptors_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio reports each connection that it cannot take, with a traceback."""
    loop = asyncio.new_event_loop()
    with sparing_logs():
        for _ in range(2000):
            error = OSError(errno.EMFILE, "Too many open files")
            loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": error})
    loop.close()
    assert len(caplog.records) == 10


def test_what_was_left_out_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sparing = Sparing(most=2, seconds=60)

    def told(message: str) -> str | None:
        record = logging.makeLogRecord({"msg": message, "name": "x", "levelno": 30})
        return record.getMessage() if sparing.filter(record) else None

    assert [told("a"), told("a"), told("a"), told("a"), told("b")] == ["a", "a", None, None, "b"]
    now = 61.0
    assert told("a") == "a (2 such messages before it were left out)" and told("a") == "a"
