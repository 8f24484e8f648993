"""The official client against a real server: completions, chats, streams, models, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from helpers.serving import PROMPT, Alone, Served, serving
from neuraldb_faiss.serving.settings import Limits, Tokens

TURN = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """One server for tests that change nothing."""
    with ExitStack() as stack:
        limits = Limits(prompt_tokens=200, new_tokens=64, grace=5)
        yield stack.enter_context(serving(folder, {"a": folder / "a"}, Tokens("secret", {}), limits))


def test_a_completion_is_what_the_model_with_the_database_says(served: Served, alone: Alone) -> None:
    edited, plain = alone(served.paths["a"], PROMPT), alone(None, PROMPT)
    assert edited != plain  # or the test shows nothing
    made = served.client().completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=8)
    assert made.choices[0].text == edited
    assert made.choices[0].finish_reason == "length" and made.object == "text_completion"
    assert made.usage is not None and (made.usage.prompt_tokens, made.usage.completion_tokens) == (13, 8)
    assert made.usage.total_tokens == 21 and made.model == "tiny"
    assert served.say(PROMPT, "tiny+a") == edited
    assert served.say(PROMPT, "tiny+none") == plain
    assert served.say([PROMPT]) == edited  # a list of one prompt


def test_a_chat_goes_through_the_template(served: Served, alone: Alone) -> None:
    made = served.client().chat.completions.create(model="tiny", messages=TURN, temperature=0, max_tokens=8)
    assert made.choices[0].message.content == alone(served.paths["a"], PROMPT, chat=True)
    assert made.choices[0].message.role == "assistant" and made.object == "chat.completion"
    halves = [{"type": "text", "text": part} for part in (PROMPT[:9], PROMPT[9:])]
    parts: Any = [{"role": "user", "content": halves}]
    same = served.client().chat.completions.create(model="tiny", messages=parts, temperature=0, max_completion_tokens=8)
    assert same.choices[0].message.content == made.choices[0].message.content


def test_a_user_cannot_write_control_tokens(served: Served) -> None:
    turn = {"messages": [{"role": "user", "content": "one<|endoftext|>two"}]}
    tokens = served.http.post("/explain", json=turn).json()["tokens"][:-1]
    assert "<|endoftext|>" not in tokens and "one<|endoftext|>two" in "".join(tokens)
    raw = served.http.post("/explain", json={"prompt": "one<|endoftext|>two"}).json()["tokens"]
    assert "<|endoftext|>" in raw  # a text to be continued is the client's own, to the last token


def test_a_stream_says_the_same_in_pieces(served: Served) -> None:
    client = served.client()
    whole = served.say(PROMPT, max_tokens=20)
    chunks = list(client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole and len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    chat = client.chat.completions.create(model="tiny", messages=TURN, temperature=0, max_tokens=20)
    stream = client.chat.completions.create(
        model="tiny", messages=TURN, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
    )
    parts = list(stream)
    said = [chunk.choices[0].delta.content or "" for chunk in parts if chunk.choices]
    assert "".join(said) == chat.choices[0].message.content
    assert parts[0].choices[0].delta.role == "assistant"
    assert parts[-1].choices == [] and parts[-1].usage == chat.usage
    assert len({chunk.id for chunk in parts}) == 1


def test_a_stop_string_ends_the_answer_before_it(served: Served) -> None:
    whole = served.say(PROMPT, max_tokens=20)
    stop = whole[6:9]
    at = whole.index(stop)
    made = served.client().completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=20, stop=["never said", stop]
    )
    assert made.choices[0].text == whole[:at] and made.choices[0].finish_reason == "stop"
    assert made.usage is not None and made.usage.completion_tokens < 20
    stream = served.client().completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=20, stop=stop, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == whole[:at]


def test_a_seed_repeats_a_draw_in_whatever_batch(served: Served) -> None:
    def draw(seed: int) -> str:
        return served.say(PROMPT, temperature=1.5, top_p=0.95, seed=seed, max_tokens=24)

    first = draw(7)
    assert first == draw(7) and first != draw(8)
    assert served.say(PROMPT, temperature=1.5, seed=7, top_p=1e-9) == served.say(PROMPT)  # only the likeliest is left
    assert served.say(PROMPT, temperature=1.5, max_tokens=24) != served.say(PROMPT, temperature=1.5, max_tokens=24)


def test_models_and_health(served: Served) -> None:
    assert [one.id for one in served.client().models.list()] == ["tiny", "tiny+a", "tiny+none"]
    assert served.client().models.retrieve("tiny+a").id == "tiny+a"
    assert served.http.get("/health").json() == {"status": "ok"}
    with pytest.raises(openai.NotFoundError):
        served.client().models.retrieve("tiny+b")


def test_the_answer_names_its_generation(served: Served) -> None:
    raw = served.client().completions.with_raw_response.create(model="tiny", prompt=PROMPT, max_tokens=2)
    assert raw.headers["X-NeuralDB-Generation"] == "1"
    raw = served.client().completions.with_raw_response.create(model="tiny+none", prompt=PROMPT, max_tokens=2)
    assert "X-NeuralDB-Generation" not in raw.headers


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "other"}, "model", "model_not_found"),
        ({"model": "tiny+b"}, "model", "model_not_found"),
        ({"model": "tiny+"}, "model", "model_not_found"),
        ({"model": None}, "model", "invalid_value"),
        ({"prompt": ""}, "prompt", None),
        ({"prompt": "a \ud800"}, "prompt", None),
        ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": [1, "a"]}, "prompt[1]", "invalid_value"),
        ({"prompt": ["a", 1]}, "prompt[1]", "invalid_value"),
        ({"prompt": [True]}, "prompt[0]", "invalid_value"),
        ({"prompt": [1.5]}, "prompt[0]", "invalid_value"),
        ({"prompt": [400]}, "prompt", "invalid_value"),
        ({"prompt": [-1]}, "prompt", "invalid_value"),
        ({"prompt": [[1, 10**30]]}, "prompt", "invalid_value"),
        ({"prompt": None}, "prompt", "invalid_value"),
        ({"prompt": {"text": "a"}}, "prompt", "invalid_value"),
        ({"prompt": ["a"] * 17}, "prompt", None),
        ({"prompt": [5] * 201}, "prompt", "context_length_exceeded"),
        ({"prompt": "word " * 300}, "prompt", "context_length_exceeded"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_tokens": 65}, "max_tokens", None),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "hot"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"stop": ["1", "2", "3", "4", "5"]}, "stop", "invalid_value"),
        ({"stop": ""}, "stop[0]", "invalid_value"),
        ({"n": 17}, "n", None),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"prompt": ["a", "b"], "n": 9}, "n", None),
        ({"logprobs": 21}, "logprobs", "invalid_value"),
        ({"logprobs": True}, "logprobs", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"min_p": 1.5}, "min_p", "invalid_value"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"stop_token_ids": [400]}, "stop_token_ids", "invalid_value"),
        ({"stop_token_ids": ["5"]}, "stop_token_ids[0]", "invalid_value"),
        ({"stop": "<|endoftext|>\n"}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other", "invalid_value"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong(
    served: Served, body: dict[str, Any], param: str, code: str | None
) -> None:
    sent = json.dumps({"model": "tiny", "prompt": PROMPT, **body})
    answer = served.http.post("/v1/completions", content=sent, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == (404 if code == "model_not_found" else 400)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert error["message"] and "Traceback" not in error["message"]
    assert not any(word in error["message"] for word in ("Input should", "pydantic", "valid", "unable to parse"))


def test_the_client_raises_its_own_errors(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        served.client().chat.completions.create(model="tiny", messages=[], max_tokens=2)
    assert bad.value.param == "messages" and bad.value.code == "invalid_value"
    with pytest.raises(openai.BadRequestError, match="tools"):
        served.client().chat.completions.create(
            model="tiny", messages=TURN, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content"):
        image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]
        served.client().chat.completions.create(model="tiny", messages=image)


@pytest.mark.parametrize(
    ("method", "path", "how", "status"),
    [
        ("POST", "/v1/completions", {"content": "{bad", "headers": {"Content-Type": "application/json"}}, 400),
        ("POST", "/v1/completions", {"content": "{}", "headers": {"Content-Type": "text/plain"}}, 400),
        ("POST", "/v1/completions", {"json": []}, 400),
        ("GET", "/v1/completions", {}, 405),
        ("GET", "/v1/nothing", {}, 404),
        ("GET", "/facts?limit=0", {}, 400),
        ("GET", "/facts?subjct=Apple", {}, 400),
    ],
)
def test_every_error_has_openais_body(served: Served, method: str, path: str, how: Any, status: int) -> None:
    answer: httpx2.Response = served.http.request(method, path, **how)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
