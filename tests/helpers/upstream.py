"""A server on loopback that behaves as vLLM's does, or misbehaves as a test tells it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "org/big-model"
# As vLLM streams: chunks of its own fields, the usage in the last one, odd spaces kept.
EVENTS = [
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"org/big-model","choices":[{'
    b'"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n',
    'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"In Röm"},"finish_reason":null}]}\n\n'.encode(),
    b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"."},"finish_reason":"stop",'
    b'"stop_reason":null}]}\n\n',
    b'data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":21,"total_tokens":24,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
]
WHOLE = (
    b'{"id":"chatcmpl-1", "object":"chat.completion","created":1,"model":"org/big-model","choices":[{"index":0,'
    b'"message":{"role":"assistant","reasoning_content":null,"content":"In Rome.","tool_calls":[]},"logprobs":null,'
    b'"finish_reason":"stop","stop_reason":null}],"usage":{"prompt_tokens":21,"total_tokens":24,"completion_tokens":3},'
    b'"prompt_logprobs":null}'
)


class Handler(BaseHTTPRequestHandler):
    """What a request asked, and ways to answer it."""

    protocol_version = "HTTP/1.1"
    upstream: FakeUpstream

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._take()

    def do_POST(self) -> None:
        self._take()

    def _take(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.body = json.loads(raw) if raw else None
        self.upstream.asked.append((f"{self.command} {self.path}", dict(self.headers.items()), self.body))
        self.upstream.answer(self)

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, pieces: list[bytes], *, whole: bool = True) -> None:
        """Server-sent events, a piece a chunk; not `whole`: the connection breaks behind them."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()
        if whole:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True


class FakeUpstream:
    """asked: (method and path, headers, body) of each request. answer: called with the handler of each."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.answer: Callable[[Handler], None] = as_vllm
        self.url = ""

    @property
    def bodies(self) -> list[Any]:
        """What completions were asked for."""
        return [body for _, _, body in self.asked if body is not None]


def as_vllm(handler: Handler) -> None:
    if handler.path == "/v1/models":
        listed = {"id": MODEL, "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}
        handler.send(200, json.dumps({"object": "list", "data": [listed]}).encode())
    elif handler.path not in ("/v1/chat/completions", "/v1/completions"):
        handler.send(404, b'{"detail":"Not Found"}')
    elif handler.body["model"] != MODEL:
        told = {"message": f"The model `{handler.body['model']}` does not exist.", "type": "NotFoundError",
                "param": "model", "code": 404}  # fmt: skip
        handler.send(404, json.dumps({"error": told}).encode())
    elif handler.body.get("stream"):
        handler.stream(EVENTS)
    else:
        handler.send(200, WHOLE)


@contextmanager
def fake_upstream() -> Iterator[FakeUpstream]:
    """A running one."""
    found = FakeUpstream()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"upstream": found}))
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        thread.join(30)
        server.server_close()
