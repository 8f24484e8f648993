"""The description of the interface: it holds for what is sent and for what comes back; pages of other sites."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from helpers.serving import PROMPT, Serve, Served, serving
from neuraldb_faiss.serving.hosts import Hosts
from neuraldb_faiss.serving.settings import Limits, Tokens

AUTH = {"Authorization": "Bearer secret"}
PAGE = "https://app.example.org"
_FORMS = {"facts": "/facts/tower", "jobs": "/jobs/none", "models": "/v1/models/tiny"}


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    import shutil

    own = Path(shutil.copytree(folder / "a", tmp_path_factory.mktemp("own") / "a"))
    with ExitStack() as stack:
        yield stack.enter_context(serving(folder, {"a": own}, Tokens("secret", {}), Limits(grace=5)))


@pytest.fixture(scope="module")
def described(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.http.get("/openapi.json").json()
    return found


def schema_of(described: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return {**content["application/json"]["schema"], "components": described["components"]}


def operation(described: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    return dict(described["paths"][path][method])


def check_answer(described: dict[str, Any], method: str, path: str, answer: Any) -> None:
    """The answer is what the description says of its status."""
    answers = operation(described, method, path)["responses"]
    told = answers.get(str(answer.status_code), answers["default"])
    jsonschema.validate(answer.json(), schema_of(described, told["content"]))


def examples(described: dict[str, Any], method: str, path: str) -> list[Any]:
    body = operation(described, method, path)["requestBody"]["content"]["application/json"]["schema"]
    return list(described["components"]["schemas"][body["$ref"].rpartition("/")[2]]["examples"])


def test_every_route_is_described_and_nothing_else(described: dict[str, Any]) -> None:
    assert {(method, path) for path, methods in described["paths"].items() for method in methods} == {
        ("get", "/health"), ("get", "/ready"), ("get", "/metrics"), ("get", "/v1/models"),
        ("get", "/v1/models/{name}"), ("post", "/v1/completions"), ("post", "/v1/chat/completions"), ("get", "/facts"),
        ("post", "/facts"), ("patch", "/facts/{name}"), ("delete", "/facts/{name}"), ("get", "/jobs/{name}"),
        ("get", "/history"), ("post", "/rollback"), ("post", "/explain"),
    }  # fmt: skip
    assert described["openapi"].startswith("3.1")
    for methods in described["paths"].values():
        for one in methods.values():
            assert "422" not in one["responses"] and "default" in one["responses"]


def test_what_is_described_may_be_sent_and_what_comes_back_is_described(
    served: Served, described: dict[str, Any]
) -> None:
    bodies = {"model": "tiny+a"}
    for method, path, real in (
        ("post", "/v1/completions", "/v1/completions"), ("post", "/v1/chat/completions", "/v1/chat/completions"),
        ("post", "/explain", "/explain"), ("post", "/facts", "/facts"), ("patch", "/facts/{name}", "/facts/tower"),
    ):  # fmt: skip
        asked = operation(described, method, path)["requestBody"]["content"]
        for body in examples(described, method, path):
            sent = {**body, **bodies} if "model" in body else body
            jsonschema.validate(sent, schema_of(described, asked))
            answer = served.http.request(method, real, json=sent, headers=AUTH)
            assert answer.status_code in (200, 202), answer.text
            check_answer(described, method, path, answer)
    for path, real in (
        ("/health", "/health"), ("/ready", "/ready"), ("/v1/models", "/v1/models"), ("/facts", "/facts"),
        ("/v1/models/{name}", "/v1/models/tiny"), ("/history", "/history"), ("/jobs/{name}", "/jobs/none"),
    ):  # fmt: skip
        check_answer(described, "get", path, served.http.get(real))
    served.change("PATCH", "/facts/tower", json={"target": "Berlin"})  # a generation to go back from
    job = served.change("POST", "/rollback", json=examples(described, "post", "/rollback")[0])
    jsonschema.validate(job, {"$ref": "#/components/schemas/JobBody", "components": described["components"]})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": PROMPT, "echo": True}),
        ("/v1/completions", {"prompt": PROMPT, "nobody_knows": 1}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": PROMPT, "temperature": 3}),
        ("/v1/completions", {"prompt": PROMPT, "neuraldb_delivery": "mail"}),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}),
        ("/v1/chat/completions", {"messages": []}),
        ("/facts", {"facts": []}),
        ("/facts", {"subject": "x", "prompt": "{} is"}),
        ("/rollback", {"generation": 0}),
        ("/explain", {"prompt": PROMPT, "text": 1}),
    ],
)
def test_what_is_not_described_is_refused(
    served: Served, described: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    sent = {"model": "tiny+a", **body} if path.startswith("/v1") else body
    answer = served.http.post(path, json=sent, headers=AUTH)
    assert answer.status_code == 400
    check_answer(described, "post", path, answer)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(sent, schema_of(described, operation(described, "post", path)["requestBody"]["content"]))


def test_what_asks_for_nothing_is_described_too(served: Served, described: dict[str, Any]) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 1, "user": "me", "echo": False, "best_of": 1, "stop": "x"}
    schema = schema_of(described, operation(described, "post", "/v1/completions")["requestBody"]["content"])
    jsonschema.validate(body, schema)
    assert served.http.post("/v1/completions", json=body).status_code == 200


def test_the_page_needs_no_script_and_nothing_from_elsewhere(served: Served, described: dict[str, Any]) -> None:
    answer = served.http.get("/docs")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "<script" not in answer.text and not re.search(r"(src|href)=['\"]?https?:", answer.text)
    for path in described["paths"]:
        assert f"<code>{path}</code>" in answer.text


def test_explain_says_why_what_is_named_did_not_fire(serve: Serve) -> None:
    served = serve()
    found = served.http.post("/explain", json={"prompt": f"{PROMPT} Rome. So says the eiffel tower"}).json()
    fired = [one for one in found["named"] if one["fired"]]
    quiet = [one for one in found["named"] if not one["fired"]]
    assert [one["position"] for one in fired] == [one["position"] for one in found["fired"]]
    assert fired[0]["score"] == pytest.approx(found["fired"][0]["score"], abs=1e-4) and fired[0]["reason"] is None
    assert [(one["reason"], one["why"][:30]) for one in quiet] == [("case", "the text writes the name in an")]
    assert {fact["id"] for fact in quiet[0]["facts"]} == {"tower", "builder"}
    assert found["gamma"] == 0.45 and found["guard"] == "subject" and quiet[0]["needed"] >= 0.45
    stated = served.http.post("/explain", json={"prompt": PROMPT, "neuraldb_delivery": "text"}).json()
    assert stated["fired"] == [] and {one["reason"] for one in stated["named"]} == {"delivery"}
    assert not any(one["fired"] for one in stated["named"])


def test_pages_of_other_sites_may_ask_where_they_are_named(serve: Serve) -> None:
    http = serve(hosts=Hosts.of("127.0.0.1", "127.0.0.1", origins=[PAGE])).http
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "PATCH",
        "Access-Control-Request-Headers": "authorization",
    }
    before = http.request("OPTIONS", "/facts/tower", headers=asked)
    assert before.status_code == 200 and before.headers["Access-Control-Allow-Origin"] == PAGE
    assert "PATCH" in before.headers["Access-Control-Allow-Methods"]
    answer = http.get("/facts", headers={"Origin": PAGE})
    assert answer.status_code == 200 and answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert "X-NeuralDB-Grounded" in answer.headers["Access-Control-Expose-Headers"]
    fact = {"subject": "x", "prompt": "{} is", "target": "y"}
    refused = http.post("/facts", json=fact, headers={"Origin": PAGE})
    assert refused.status_code == 401 and refused.headers["Access-Control-Allow-Origin"] == PAGE
    other = http.get("/facts", headers={"Origin": "https://evil.example"})
    assert other.status_code == 403 and "Access-Control-Allow-Origin" not in other.headers
    plain = serve().http.get("/facts", headers={"Origin": PAGE})
    assert plain.status_code == 403 and "--cors" in plain.json()["error"]["message"]


@pytest.mark.parametrize("origin", ["app.example.org", "https://app.example.org/path", "https://"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    from neuraldb_faiss.errors import ServeError

    with pytest.raises(ServeError, match="--cors"):
        Hosts.of("127.0.0.1", "127.0.0.1", origins=[origin])
