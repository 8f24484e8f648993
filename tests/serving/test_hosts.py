"""By which names a server may be asked, and from which pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.serving import PROMPT, Serve
from neuraldb_faiss import NeuralDB
from neuraldb_faiss.cli.commands.inspect import inspect
from neuraldb_faiss.cli.commands.serve import serve as serve_command
from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.serving.hosts import Hosts

LOOPBACK = Hosts.of("127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("LOCALHOST.:8000", True), ("127.0.0.1:8000", True), ("127.8.9.1", True),
        ("[::1]:8000", True), ("[0:0:0:0:0:0:0:1]", True), ("evil.example", False), ("evil.example:8000", False),
        ("localhost.evil.example", False), ("evil-localhost", False), ("127.0.0.1.evil.example", False),
        ("10.1.2.3:8000", False), ("[fe80::1]", False), ("", False), ("localhost:80:80", False),
        ("user@localhost", False), ("localhost/x", False), ("[::1", False), ("*", False),
    ],
)  # fmt: skip
def test_names_of_loopback_are_known_by_default(host: str, known: bool) -> None:
    assert LOOPBACK.knows(host) is known and Hosts().knows(host) is known


def test_the_host_that_is_served_on_and_given_names_are_known() -> None:
    named = Hosts.of("Box.lan", "192.168.1.7", ["api.example", "::2", "10.0.0.9"])
    for host in ("box.lan:8000", "192.168.1.7", "API.example", "[::2]:80", "10.0.0.9:1", "localhost"):
        assert named.knows(host), host
    for host in ("192.168.1.8", "other.example", "sub.api.example", "api.example.evil", "[::3]"):
        assert not named.knows(host), host


@pytest.mark.parametrize("bound", ["0.0.0.0", "::"])
def test_bound_to_all_addresses_any_of_them_is_known_and_no_name(bound: str) -> None:
    every = Hosts.of(bound, bound)
    assert every.knows("10.1.2.3:8000") and every.knows("[fe80::1]:8000") and every.knows("localhost")
    assert not every.knows("evil.example")
    assert Hosts.of(bound, bound, ["*"]).knows("evil.example")


@pytest.mark.parametrize(
    ("origin", "trusted"),
    [
        ("http://localhost:8000", True), ("https://app.example", True), ("https://app.example:444", True),
        ("http://localhost:3000", False), ("http://evil.example", False), ("null", False), ("", False),
        ("file://", False), ("http://localhost:8000.evil.example", False),
    ],
)  # fmt: skip
def test_pages_of_this_server_and_of_given_names_are_trusted(origin: str, trusted: bool) -> None:
    assert Hosts.of("127.0.0.1", "127.0.0.1", ["app.example"]).trusts(origin, "localhost:8000") is trusted
    assert Hosts.of("127.0.0.1", "127.0.0.1", ["*"]).trusts(origin, "localhost:8000")


@pytest.mark.parametrize("name", ["http://app.example", "app.example:80", "", "a b", "*.example", "app.example/"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ServeError, match="--allowed-host"):
        Hosts.of("127.0.0.1", "127.0.0.1", [name])


def test_a_rebound_name_reads_and_changes_nothing(serve: Serve) -> None:
    served = serve()
    headers = {"Host": "evil.example:8000", "Authorization": "Bearer secret"}
    fact = [{"subject": "Apple", "prompt": "{} is", "target": "Rome"}]
    for method, path, body in (
        ("GET", "/facts", None), ("GET", "/health", None), ("GET", "/metrics", None), ("GET", "/v1/models", None),
        ("POST", "/v1/completions", {"model": "tiny", "prompt": PROMPT}), ("POST", "/facts", fact),
        ("DELETE", "/facts/tower", None), ("GET", "/nothing", None),
    ):  # fmt: skip
        answer = served.http.request(method, path, json=body, headers=headers)
        assert answer.status_code == 421 and "--allowed-host" in answer.json()["error"]["message"], path
    for host in ("localhost", f"localhost:{served.address[1]}", "[::1]:80"):
        assert served.http.get("/facts", headers={"Host": host}).status_code == 200
    with NeuralDB.open(served.paths["a"]) as db:
        assert db.generation == 1


def test_a_page_of_another_site_makes_the_server_do_nothing(serve: Serve) -> None:
    """Also where the answer could not be read: what a browser sends without asking first."""
    served = serve()
    body = '{"model": "tiny", "prompt": "Berlin is in", "max_tokens": 3}'
    evil = {"Origin": "http://evil.example"}
    for headers in ({"Content-Type": "text/plain", **evil}, {"Content-Type": "application/json", **evil}, evil):
        answer = served.http.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code == 403 and answer.json()["error"]["code"] == "foreign_origin"
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        answer = served.http.post("/v1/completions", content=body, headers=headers)
        assert answer.status_code == 400 and "Content-Type: application/json" in answer.json()["error"]["message"]
    preflight = served.http.options("/v1/completions", headers={"Access-Control-Request-Method": "POST", **evil})
    assert preflight.status_code == 403 and not any("allow-origin" in name.lower() for name in preflight.headers)
    assert served.metric('neuraldb_generated_tokens_total{database="a"}') == 0
    same = {"Origin": served.url, "Content-Type": "application/json"}
    assert served.http.post("/v1/completions", content=body, headers=same).status_code == 200


@pytest.mark.parametrize("command", [serve_command, inspect])
def test_both_commands_take_the_option(command: object, folder: Path) -> None:
    done = CliRunner().invoke(command, [str(folder / "a"), "--allowed-host", "http://x", "--port", "0"])
    assert done.exit_code == 1 and "--allowed-host http://x" in str(done.exception)
