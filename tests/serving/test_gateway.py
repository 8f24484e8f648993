"""Databases before another server: what is stated there, whose answers come back, and what its failures become."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from click.testing import CliRunner

from helpers.commands import FACTS
from helpers.serving import PROMPT, Served, serving, until
from helpers.upstream import EVENTS, MODEL, WHOLE, FakeUpstream, Handler, as_vllm, fake_upstream
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.commands.serve import serve as command
from neuraldb_faiss.create import build
from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.serving.gateway.backend import gateway_backend
from neuraldb_faiss.serving.gateway.upstream import Target
from neuraldb_faiss.serving.logs import logging_to
from neuraldb_faiss.serving.server import Server, bind
from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens

TOWER = "The Eiffel Tower is located in the city of Rome."
TURNS = [{"role": "user", "content": "Tell me about the Eiffel Tower."}]
CHAT = {"model": MODEL, "messages": TURNS, "temperature": 0.5, "seed": 7, "tools": [], "x_of_upstream": {"a": 1.5}}
AUTH = {"Authorization": "Bearer secret"}
Gateway = Callable[..., Served]


@pytest.fixture
def upstream() -> Iterator[FakeUpstream]:
    with fake_upstream() as found:
        yield found


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    """Databases "a" and "b" without a model: the same subjects, other targets."""
    targets = {"a": ["Rome", "Steve", "Tokyo", "Italy"], "b": ["Berlin", "Microsoft", "Madrid", "Japan"]}
    for name, given in targets.items():
        facts = [Fact.from_dict({**one, "target": target}) for one, target in zip(FACTS, given, strict=True)]
        build(facts, None, None, tmp_path / "texts" / name).close()
    return {name: tmp_path / "texts" / name for name in targets}


@pytest.fixture
def gateway(upstream: FakeUpstream, texts: dict[str, Path]) -> Iterator[Gateway]:
    """`gateway("a", "b", url=..., key=..., own={...}, timeout=3)`: a gateway before the fake server, or another URL."""
    with ExitStack() as stack:

        def start(
            *names: str, url: str = "", key: str | None = "upstream-key", own: dict[str, str] | None = None,
            paths: dict[str, Path] | None = None, default: str | None = None, log_content: bool = False, **limits: Any,
        ) -> Served:  # fmt: skip
            chosen = paths or {name: texts[name] for name in names or ("a",)}
            how = Limits(**{"grace": 5.0, "timeout": 30.0, **limits})
            settings = ServerSettings(
                Tokens("secret", own or {}), how, delivery=None, default=default, log_content=log_content
            )
            load = partial(gateway_backend, Target.of(url or upstream.url, key), chosen, settings)
            bound = stack.enter_context(bind("127.0.0.1", 0))
            ready = threading.Event()
            server = Server(load, bound, settings, ready=lambda _: ready.set())
            thread = threading.Thread(target=server.serve_until_told)
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(60)
                assert not thread.is_alive()

            stack.callback(stop)
            assert ready.wait(30)
            served = Served(f"http://127.0.0.1:{bound.getsockname()[1]}", None, chosen)
            return stack.enter_context(closing(served))

        yield start


def test_a_chat_is_stated_facts_and_answered_to_the_byte(gateway: Gateway, upstream: FakeUpstream) -> None:
    served = gateway()
    answer = served.http.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"})
    assert answer.status_code == 200 and answer.content == WHOLE
    assert answer.headers["X-NeuralDB-Grounded"] == "tower, builder" and answer.headers["X-NeuralDB-Delivery"] == "text"
    assert answer.headers["X-NeuralDB-Generation"] == "1" and answer.headers["X-Request-Id"] == "mine"
    ((asked, headers, body),) = upstream.asked
    with NeuralDB.open(served.paths["a"]) as db:
        assert body == {**CHAT, "messages": db.ground(TURNS).prompt}
    assert TOWER in body["messages"][0]["content"] and asked == "POST /v1/chat/completions"
    lowered = {name.lower(): value for name, value in headers.items()}
    assert lowered["authorization"] == "Bearer upstream-key" and lowered["x-request-id"] == "mine"


def test_a_stream_passes_through_byte_by_byte_and_as_it_comes(gateway: Gateway, upstream: FakeUpstream) -> None:
    go = threading.Event()

    def slowly(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(EVENTS[0][:17])
        handler.wfile.flush()
        assert go.wait(30)  # nothing more until the client has this
        handler.wfile.write(EVENTS[0][17:] + b"".join(EVENTS[1:]))
        handler.close_connection = True

    upstream.answer = slowly
    with gateway().http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-NeuralDB-Grounded"] == "tower, builder"
        coming = answer.iter_raw()
        begun = next(coming)
        assert begun == EVENTS[0][:17]
        go.set()
        assert begun + b"".join(coming) == b"".join(EVENTS)


def test_openais_client_talks_through_it(gateway: Gateway) -> None:
    client = gateway().client()
    made = client.chat.completions.create(model=MODEL, messages=TURNS, stream=True)
    assert "".join(one.choices[0].delta.content or "" for one in made if one.choices) == "In Röm."
    assert [one.id for one in client.models.list()] == [MODEL, f"{MODEL}+a", f"{MODEL}+none"]
    assert client.models.retrieve(f"{MODEL}+a").id == f"{MODEL}+a"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=TURNS)


def test_texts_to_continue_are_stated_facts_too(gateway: Gateway, upstream: FakeUpstream) -> None:
    http = gateway().http
    http.post("/v1/completions", json={"model": MODEL, "prompt": PROMPT})
    http.post("/v1/completions", json={"model": MODEL, "prompt": [PROMPT, "Paris is"], "suffix": "x"})
    http.post("/v1/completions", json={"model": MODEL, "prompt": [5, 6]})
    one, several, ids = (body["prompt"] for body in upstream.bodies)
    assert TOWER in one and one.endswith(PROMPT)
    assert TOWER in several[0] and several[0].endswith(PROMPT) and several[1].endswith("Paris is")
    assert ids == [5, 6] and upstream.bodies[1]["suffix"] == "x"


def test_the_model_the_header_or_the_default_name_the_database(gateway: Gateway, upstream: FakeUpstream) -> None:
    served = gateway("a", "b", own={"b": "token-b"})

    def system(model: str, **headers: str) -> Any:
        asked = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = served.http.post("/v1/chat/completions", json={**CHAT, "model": model}, headers=asked)
        if answer.status_code != 200:
            return answer.status_code
        assert upstream.bodies[-1]["model"] == MODEL
        return upstream.bodies[-1]["messages"][0]["content"]

    mine = {"Authorization": "Bearer token-b"}
    assert "of Rome" in system(f"{MODEL}+a") and "of Rome" in system(MODEL, X_NeuralDB="a")
    assert "of Berlin" in system(f"{MODEL}+b", **mine)
    assert system(MODEL) == system(f"{MODEL}+none") == TURNS[0]["content"]
    assert system(f"{MODEL}+b") == 401 and system(f"{MODEL}+a", X_NeuralDB="none") == 400
    assert system(f"{MODEL}+c") == 404 and system(MODEL, X_NeuralDB="c") == 404
    listed = [one["id"] for one in served.http.get("/v1/models").json()["data"]]
    assert listed == [MODEL, f"{MODEL}+a", f"{MODEL}+none"]
    listed = [one["id"] for one in served.http.get("/v1/models", headers=mine).json()["data"]]
    assert f"{MODEL}+b" in listed
    assert "Bearer token-b" not in str(upstream.asked)  # its clients' tokens are no affair of the other server


def test_only_what_can_be_delivered_may_be_asked_for(gateway: Gateway, upstream: FakeUpstream) -> None:
    http = gateway().http
    ok = http.post("/v1/chat/completions", json={**CHAT, "neuraldb_delivery": "text"})
    assert ok.status_code == 200 and "neuraldb_delivery" not in upstream.bodies[0]
    for sent, headers in (({"neuraldb_delivery": "residual"}, {}), ({}, {"X-NeuralDB-Delivery": "both"})):
        refused = http.post("/v1/chat/completions", json={**CHAT, **sent}, headers=headers)
        assert refused.status_code == 400 and "stated" in refused.json()["error"]["message"]
    for body in ({"model": MODEL}, {"messages": TURNS}, {**CHAT, "messages": [{"content": "x"}]}, {**CHAT, "model": 5}):
        assert http.post("/v1/chat/completions", json=body).status_code == 400
    assert len(upstream.bodies) == 1


def test_facts_are_changed_by_the_same_routes(gateway: Gateway, upstream: FakeUpstream) -> None:
    served = gateway()
    log = io.StringIO()
    with logging_to(log, "warning", "json"):
        added = served.change("POST", "/facts", json={"subject": "Zorblax", "prompt": "{} lives in", "target": "Oslo"})
        assert (added["state"], added["generation"], added["added"]) == ("succeeded", 2, 1)
        assert served.change("PATCH", "/facts/tower", json={"target": "Bergen"})["generation"] == 3
        served.http.post("/v1/chat/completions", json=CHAT)
        assert "of Bergen" in upstream.bodies[-1]["messages"][0]["content"]
        assert served.change("DELETE", "/facts/tower")["generation"] == 4
        answer = served.http.post("/v1/chat/completions", json=CHAT)
        assert "of Bergen" not in str(upstream.bodies[-1]) and answer.headers["X-NeuralDB-Generation"] == "4"
        assert served.change("POST", "/rollback", json={"generation": 1})["generation"] == 5
    changes = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [one["kind"] for one in changes] == ["add", "update", "remove", "rollback"]
    assert {one["who"] for one in changes} == {"common"}
    assert [one["generation"] for one in served.http.get("/history").json()["data"]] == [5, 4, 3, 2, 1]
    assert len(served.http.get("/facts").json()["data"]) == 4
    assert served.http.post("/facts", json=FACTS[0]).status_code == 401
    with NeuralDB.open(served.paths["a"]) as db:
        assert db.verify(deep=True) == []


def test_another_writer_is_waited_for(gateway: Gateway) -> None:
    from neuraldb_faiss.store import Store

    served = gateway()
    store = Store(served.paths["a"], "rw")
    with store.write("another process"):
        answer = served.http.delete("/facts/tower", headers=AUTH)
        assert served.http.get(answer.headers["Location"]).json()["state"] in ("queued", "running")
    store.close()
    until(lambda: served.http.get(answer.headers["Location"]).json()["state"] == "succeeded")


def test_a_database_with_residuals_is_stated_and_gives_facts_up_but_takes_none(
    gateway: Gateway, paths: dict[str, Path], upstream: FakeUpstream
) -> None:
    served = gateway(paths={"a": paths["a"]})
    served.http.post("/v1/chat/completions", json=CHAT)
    assert TOWER in upstream.bodies[-1]["messages"][0]["content"]
    fact = {"subject": "Zorblax", "prompt": "{} lives in", "target": "Oslo"}
    for method, path, body in (("POST", "/facts", fact), ("PATCH", "/facts/tower", {"target": "Oslo"})):
        refused = served.http.request(method, path, json=body, headers=AUTH)
        assert refused.status_code == 409 and refused.json()["error"]["code"] == "needs_model"
    assert served.change("DELETE", "/facts/tower")["state"] == "succeeded"


def test_what_would_be_stated_is_told(gateway: Gateway) -> None:
    found = gateway().http.post("/explain", json={"messages": TURNS}).json()
    assert [fact["id"] for fact in found["stated"]] == ["tower", "builder"] and found["delivery"] == "text"
    assert found["stated"][0]["statement"] == TOWER and TOWER in found["messages"][0]["content"]


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (400, b'{"error":{"message":"too long","type":"BadRequestError","param":"messages","code":400}}', "too long"),
        (500, b'{"error":{"code":500,"message":"slot failed","type":"server_error"}}', "slot failed"),
        (404, b'{"error":"model \'x\' not found, try pulling it first"}', "try pulling it"),
        (422, b'{"detail":[{"loc":["body"],"msg":"wrong"}]}', "the upstream server answered 422"),
        (503, b"<html>Bad gateway</html>", "the upstream server answered 503"),
        (429, b'{"error":{"message":"slow down","code":"rate_limit_exceeded"}}', "slow down"),
    ],
)
def test_its_errors_become_openais(
    gateway: Gateway, upstream: FakeUpstream, status: int, body: bytes, told: str
) -> None:
    upstream.answer = lambda handler: handler.send(status, body, Retry_After="7")
    for stream in (False, True):
        answer = gateway().http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        error = answer.json()["error"]
        assert answer.status_code == status and told in error["message"] and set(error) == {
            "message", "type", "param", "code"
        }  # fmt: skip
        assert isinstance(error["code"], str) and answer.headers["Retry-After"] == "7"


def test_its_failures_are_no_fault_of_the_client(gateway: Gateway, upstream: FakeUpstream) -> None:
    dead = gateway(url="http://127.0.0.1:9/v1").http.post("/v1/chat/completions", json=CHAT)
    assert dead.status_code == 502 and "cannot be reached" in dead.json()["error"]["message"]
    served = gateway()

    def ask() -> tuple[int, str]:
        answer = served.http.post("/v1/chat/completions", json=CHAT)
        return answer.status_code, answer.json()["error"]["message"]

    upstream.answer = lambda handler: handler.send(401, b'{"error":{"message":"bad key upstream-key"}}')
    status, told = ask()
    assert status == 502 and "gateway's key" in told and "upstream-key " not in told
    upstream.answer = lambda handler: handler.send(302, b"", Location="http://elsewhere.example/")
    status, told = ask()
    assert status == 502 and "redirects" in told

    def broken(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"{")
        handler.close_connection = True

    upstream.answer = broken
    assert ask() == (502, "the upstream server broke off")
    upstream.answer = as_vllm
    assert served.http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_one_that_does_not_answer_is_given_up(gateway: Gateway, upstream: FakeUpstream) -> None:
    free = threading.Event()

    def silent(_: Handler) -> None:
        free.wait(30)

    upstream.answer = silent
    try:
        answer = gateway(timeout=0.2).http.post("/v1/chat/completions", json=CHAT)
    finally:
        free.set()
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"


def test_a_stream_that_breaks_ends_with_an_error(gateway: Gateway, upstream: FakeUpstream) -> None:
    upstream.answer = lambda handler: handler.stream(EVENTS[:2], whole=False)
    answer = gateway().http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert answer.content.startswith(b"".join(EVENTS[:2])) and b"[DONE]" not in answer.content
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["code"] == "upstream_error"


def test_a_client_that_goes_away_ends_the_request_there(gateway: Gateway, upstream: FakeUpstream) -> None:
    gone = threading.Event()

    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(EVENTS[1])
        except OSError:
            gone.set()

    upstream.answer = endless
    with gateway().http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        next(answer.iter_raw())
    assert gone.wait(60)


def test_requests_are_logged_and_counted_with_what_it_says_of_tokens(gateway: Gateway) -> None:
    log = io.StringIO()
    with logging_to(log, "info", "json"):
        served = gateway(log_content=True)
        served.http.post("/v1/chat/completions", json=CHAT)
        served.http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        until(lambda: log.getvalue().count("/v1/chat/completions") == 2)
    whole, stream = [json.loads(line) for line in log.getvalue().splitlines()]
    for line in (whole, stream):
        assert (line["database"], line["generation"], line["prompt_tokens"], line["completion_tokens"]) == (
            "a",
            1,
            21,
            3,
        )
        assert line["prompt"] == TURNS
    assert (whole["answer"], stream["answer"]) == (["In Rome."], ["In Röm."])
    assert served.metric('neuraldb_generated_tokens_total{database="a"}') == 6
    assert served.metric('neuraldb_grounded_facts_total{database="a"}') == 4
    assert served.metric('neuraldb_facts{database="a"}') == 4


def test_a_server_of_our_own_is_one_of_any(gateway: Gateway, folder: Path, texts: dict[str, Path]) -> None:
    with serving(folder, {"other": folder / "b"}, Tokens(None, {}), Limits(grace=5)) as behind:
        served = gateway(url=f"{behind.url}/v1", key=None)
        with NeuralDB.open(texts["a"]) as db:
            stated = db.ground(PROMPT).prompt
        expected = behind.say(stated, "tiny+none")
        assert served.say(PROMPT, "tiny+none+a") == expected != behind.say(PROMPT, "tiny+none")
        assert served.say(PROMPT, "tiny+none+none") == behind.say(PROMPT, "tiny+none")
        body = {"model": "tiny+none+a", "prompt": PROMPT, "temperature": 0, "max_tokens": 8, "stream": True}
        events = [
            json.loads(line.removeprefix("data: "))
            for line in served.http.post("/v1/completions", json=body).text.splitlines()
            if line.startswith("data: {")
        ]
        assert "".join(one["choices"][0]["text"] for one in events) == expected
        with pytest.raises(openai.BadRequestError, match="max_tokens"):
            served.say(PROMPT, "tiny+none+a", max_tokens=100_000)
        names = [one["id"] for one in served.http.get("/v1/models").json()["data"]]
        assert names[:3] == ["tiny", "tiny+a", "tiny+none"] and "tiny+other+a" in names


def test_it_starts_without_torch(texts: dict[str, Path]) -> None:
    code = (
        "import sys\n"
        "from neuraldb_faiss.serving import server\n"
        "real = server.Server._loaded\n"
        "def loaded(self, backend):\n"
        "    real(self, backend)\n"
        "    print(sorted({'torch', 'transformers', 'faiss'} & set(sys.modules)))\n"
        "    self.should_exit = True\n"
        "server.Server._loaded = loaded\n"
        "from neuraldb_faiss.cli.commands.serve import serve\n"
        "serve()\n"
    )
    arguments = [f"a={texts['a']}", "--upstream", "http://127.0.0.1:9", "--port", "0"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n" and "serving +a behind the models of http://127.0.0.1:9" in done.stderr


def test_every_line_is_json_where_that_is_asked_for(texts: dict[str, Path]) -> None:
    code = "from neuraldb_faiss.cli.commands.serve import serve; serve()"
    arguments = [f"a={texts['a']}", "--upstream", "http://127.0.0.1:9", "--port", "0", "--log-format", "json"]
    lines = []
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(json.loads(line))
                if lines[-1]["message"].startswith("at http://"):
                    process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert [line["level"] for line in lines] == ["warning", "info", "info", "info"]
    assert lines[0]["message"].startswith("no --token") and lines[-1]["message"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--upstream", "ftp://x"], "give the server's address"),
        (["--upstream", "http://user:pw@x/v1"], "give the server's address"),
        (["--upstream", "http://x", "--delivery", "residual"], "facts can only be stated"),
        (["--upstream", "http://x", "--model", "m"], "leave --model, --device and --dtype out"),
        (["--upstream-key", "k"], "needs --upstream"),
    ],
)
def test_what_cannot_be_put_before_is_said(texts: dict[str, Path], arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(command, [f"a={texts['a']}", *arguments, "--port", "0"])
    assert done.exit_code != 0 and told in f"{done.exception} {done.output}"


def test_an_address_without_a_path_means_v1() -> None:
    assert Target.of("http://x:1/").url == "http://x:1/v1" and Target.of("http://x:1/v1/").url == "http://x:1/v1"
    assert Target.of("https://x/openai/v1", "k") == Target("https://x/openai/v1", "k")
    with pytest.raises(ServeError):
        Target.of("x:1")
