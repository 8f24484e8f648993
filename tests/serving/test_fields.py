"""Fields of a request: each changes the answer as it says, changes nothing, or is refused by its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.serving import PROMPT, Served, serving
from neuraldb_faiss.serving.settings import Limits, Tokens

OTHER = "Apple was founded by"
TURN = [{"role": "user", "content": PROMPT}]
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Served]:
    """One server for tests that change nothing."""
    with ExitStack() as stack:
        limits = Limits(prompt_tokens=200, new_tokens=64, grace=5)
        yield stack.enter_context(serving(folder, {"a": folder / "a"}, Tokens("secret", {}), limits))


def post(served: Served, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = served.http.post(path, json={"model": "tiny", **body})
    return answer.status_code, answer.json()


def complete(served: Served, **body: Any) -> dict[str, Any]:
    status, found = post(served, "/v1/completions", **{"prompt": PROMPT, **GREEDY, **body})
    assert status == 200, found
    return found


def said(served: Served, **body: Any) -> str:
    return str(complete(served, **body)["choices"][0]["text"])


# ---- which fields there are

# A value of each that would change an answer.
UNSUPPORTED: dict[str, Any] = {
    "add_special_tokens": False, "allowed_token_ids": [5], "audio": {"voice": "a"}, "bad_words": ["the"],
    "best_of": 2, "chat_template": "{{ messages }}", "continue_final_message": True, "documents": [{"text": "a"}],
    "echo": True, "frequency_penalty": 0.5, "function_call": {"name": "f"}, "functions": [{"name": "f"}],
    "guided_choice": ["a", "b"], "guided_json": {"type": "object"}, "guided_regex": "a+", "ignore_eos": True,
    "include_stop_str_in_output": True, "length_penalty": 2.0, "logit_bias": {"5": 100}, "min_tokens": 5,
    "modalities": ["text", "audio"], "no_repeat_ngram_size": 2, "num_beams": 4, "prediction": {"type": "content"},
    "presence_penalty": 0.5, "prompt_logprobs": 0, "reasoning_effort": "high", "repeat_penalty": 1.5,
    "response_format": {"type": "json_object"}, "skip_special_tokens": False, "structured_outputs": {"regex": "a"},
    "suffix": "end", "tool_choice": "required", "tools": [{"type": "function"}], "top_a": 0.5,
    "truncate_prompt_tokens": 3, "typical_p": 0.5, "use_beam_search": True, "web_search_options": {},
    "tempreature": 0.5, "nonsense": "",
}  # fmt: skip
NEUTRAL: dict[str, Any] = {
    "best_of": 1, "echo": False, "frequency_penalty": 0.0, "ignore_eos": False, "length_penalty": 1,
    "logit_bias": {}, "logprobs": None, "metadata": {"a": "b"}, "min_p": 0, "min_tokens": 0, "n": 1,
    "presence_penalty": 0, "repetition_penalty": 1, "response_format": {"type": "text"}, "seed": None,
    "service_tier": "auto", "skip_special_tokens": True, "stop": None, "stop_token_ids": [], "store": True,
    "suffix": "", "tools": [], "top_k": -1, "top_p": 1, "typical_p": 1.0, "unheard_of": None,
    "use_beam_search": False, "user": "me",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_field_that_would_be_ignored_is_refused_by_its_name(served: Served, path: str, name: str) -> None:
    text = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": TURN}
    status, found = post(served, path, **{**text, **GREEDY, name: UNSUPPORTED[name]})
    error = found["error"]
    assert status == 400 and error["param"] == name and name in error["message"]
    assert error["code"] in ("unsupported_parameter", "unknown_parameter")


@pytest.mark.parametrize("odd", ['"\\ud800": 1', '"x\\ud800": null', '"stop": "\\ud800"', '"seed": ' + "9" * 5000])
def test_odd_json_is_refused_and_breaks_nothing(served: Served, odd: str) -> None:
    body = f'{{"model": "tiny", "prompt": "a", {odd}}}'
    answer = served.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "Input should" not in answer.json()["error"]["message"]


def test_fields_that_ask_for_nothing_are_taken(served: Served) -> None:
    plain = said(served)
    for name, value in NEUTRAL.items():
        assert said(served, **{name: value}) == plain, name
    chat = {"messages": TURN, **GREEDY, "logprobs": False, "top_logprobs": 0, "parallel_tool_calls": True}
    assert post(served, "/v1/chat/completions", **{**NEUTRAL, **chat})[0] == 200


def test_zero_is_not_false(served: Served) -> None:
    """`0 == False` in Python, and not in the API."""
    assert complete(served, logprobs=0)["choices"][0]["logprobs"] is not None
    assert complete(served, logprobs=False)["choices"][0]["logprobs"] is None
    assert post(served, "/v1/completions", prompt=PROMPT, echo=0)[1]["error"]["param"] == "echo"
    assert post(served, "/v1/completions", prompt=PROMPT, presence_penalty=False)[1]["error"]["param"]


# ---- prompts


def test_token_ids_are_a_prompt(served: Served, alone: Any) -> None:
    from helpers.tiny import tiny_tokenizer

    ids = tiny_tokenizer()(PROMPT)["input_ids"]
    assert said(served, prompt=ids) == said(served, prompt=[ids]) == said(served) == alone(served.paths["a"], PROMPT)
    explained = served.http.post("/explain", json={"prompt": ids}).json()
    assert explained == served.http.post("/explain", json={"prompt": PROMPT}).json()


def test_a_list_of_prompts_gets_an_answer_each(served: Served) -> None:
    found = complete(served, prompt=[PROMPT, OTHER, PROMPT])
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    assert [one["text"] for one in found["choices"]] == [said(served), said(served, prompt=OTHER), said(served)]
    assert found["usage"]["completion_tokens"] == 24
    alone = [complete(served, prompt=text)["usage"]["prompt_tokens"] for text in (PROMPT, OTHER)]
    assert found["usage"]["prompt_tokens"] == 2 * alone[0] + alone[1]


def test_n_answers_are_drawn_apart_and_again_by_the_seed(served: Served) -> None:
    how = {"temperature": 1.5, "max_tokens": 24, "n": 3, "seed": 5, "prompt": [PROMPT, OTHER]}
    texts = [one["text"] for one in complete(served, **how)["choices"]]
    assert len(texts) == 6 and len(set(texts)) == 6
    assert texts == [one["text"] for one in complete(served, **how)["choices"]]
    assert texts[0] == said(served, temperature=1.5, max_tokens=24, seed=5)  # the first is as if it were alone
    chat = {"messages": TURN, "n": 2, "max_tokens": 8, "seed": 2, "temperature": 1.5}
    found = post(served, "/v1/chat/completions", **chat)[1]["choices"]
    assert [one["index"] for one in found] == [0, 1] and len({one["message"]["content"] for one in found}) == 2


def test_a_stream_of_several_answers_says_which_each_piece_is_of(served: Served) -> None:
    how = {"model": "tiny", "messages": TURN, "n": 3, "temperature": 1.2, "seed": 3, "max_tokens": 12}
    client: Any = served.client().chat.completions
    whole = client.create(**how)
    texts, used = ["", "", ""], None
    reasons: dict[int, str] = {}
    for chunk in client.create(**how, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.finish_reason:
                assert reasons.setdefault(choice.index, choice.finish_reason) == choice.finish_reason
        used = chunk.usage or used
    assert texts == [one.message.content for one in whole.choices] and set(reasons) == {0, 1, 2}
    assert used == whole.usage


def test_more_than_one_batch_holds_is_refused(folder: Path) -> None:
    with serving(folder, {"a": folder / "a"}, Tokens(None, {}), Limits(batch=4, batch_tokens=100)) as served:
        assert len(complete(served, n=4)["choices"]) == 4
        status, found = post(served, "/v1/completions", prompt=PROMPT, n=4, max_tokens=20)
        assert status == 400 and "132 tokens" in found["error"]["message"]
        assert post(served, "/v1/completions", prompt=PROMPT, n=5)[1]["error"]["param"] == "n"
        assert said(served, max_tokens=120)  # one alone may be longer


# ---- how tokens are chosen


def test_what_is_left_to_draw_from_changes_the_answer(served: Served) -> None:
    hot = {"temperature": 2.0, "seed": 1, "max_tokens": 24}
    greedy = said(served, max_tokens=24)
    assert said(served, **hot) != greedy
    assert said(served, **hot, top_k=1) == said(served, **hot, min_p=1) == greedy
    assert said(served, **hot, top_k=3) not in (greedy, said(served, **hot))


def test_a_penalty_changes_a_greedy_answer(served: Served) -> None:
    counts = []
    for penalty in (0.01, 1.0, 100.0):
        found = complete(served, max_tokens=60, logprobs=0, repetition_penalty=penalty)
        counts.append(len(set(found["choices"][0]["logprobs"]["tokens"])))
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("temperature", [1e-9, 1e-38, 1e-45, 5e-324])
def test_a_tiny_temperature_is_greedy(served: Served, temperature: float) -> None:
    assert said(served, temperature=temperature, top_p=0.5, top_k=7, seed=1) == said(served)


# ---- probabilities


def test_logprobs_of_a_completion(served: Served) -> None:
    found = complete(served, logprobs=3, max_tokens=12)["choices"][0]
    told = found["logprobs"]
    assert len(told["tokens"]) == 12
    for token, chance, best, offset in zip(
        told["tokens"], told["token_logprobs"], told["top_logprobs"], told["text_offset"], strict=True
    ):
        assert len(best) == 3 and max(best.values()) == best[token] == chance < 0  # greedy: the best is taken
        assert "\ufffd" in found["text"][: offset + 1] or found["text"][offset:].startswith(token)
    none = complete(served, logprobs=0, max_tokens=12)["choices"][0]["logprobs"]
    assert none["token_logprobs"] == told["token_logprobs"] and none["top_logprobs"] is None
    hot = complete(served, logprobs=1, temperature=2, repetition_penalty=5, seed=3)["choices"][0]["logprobs"]
    assert hot["token_logprobs"] != [max(one.values()) for one in hot["top_logprobs"]]  # the model's, not the draw's


def test_logprobs_of_a_chat_in_a_stream_too(served: Served) -> None:
    how: Any = {"model": "tiny", "messages": TURN, **GREEDY, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    chats: Any = served.client().chat.completions
    choice = chats.create(**how).choices[0]
    content = choice.logprobs.content
    assert len(content) == 20 and "".join(one.token for one in content if one.bytes)
    assert all(one.token in choice.message.content for one in content if one.bytes)
    assert all(one.top_logprobs[0].token == one.token and len(one.top_logprobs) == 2 for one in content)
    assert all(one.bytes in (None, list(one.token.encode())) for one in content)
    pieces = [one.choices[0] for one in chats.create(**how, stream=True)]
    streamed = [token for one in pieces if one.logprobs for token in one.logprobs.content]
    assert streamed == content
    assert chats.create(**{**how, "top_logprobs": 0}).choices[0].logprobs.content[0].top_logprobs == []


def test_a_stop_string_has_no_logprobs(served: Served) -> None:
    whole = said(served, max_tokens=20)
    cut = complete(served, max_tokens=20, stop=whole[6:9], logprobs=0)["choices"][0]
    assert cut["text"] == whole[: whole.index(whole[6:9])]
    assert cut["logprobs"]["tokens"]
    assert all(offset < len(cut["text"]) for offset in cut["logprobs"]["text_offset"])


# ---- messages


@pytest.mark.parametrize(
    ("messages", "param", "told"),
    [
        (None, "messages", "list"),
        ("hello", "messages", "list"),
        ([], "messages", "at least one"),
        (["hello"], "messages[0]", "object"),
        ([{"content": "a"}], "messages[0].role", "missing"),
        ([{"role": "tool", "content": "a"}], "messages[0].role", "tools and functions are not supported"),
        ([{"role": ["user"], "content": "a"}], "messages[0].role", "list"),
        ([{"role": "user"}], "messages[0].content", "null or missing"),
        ([*TURN, {"role": "assistant", "content": None}], "messages[1].content", "null or missing"),
        ([{"role": "user", "content": 5}], "messages[0].content", "number"),
        ([{"role": "user", "content": ["a"]}], "messages[0].content[0]", "part"),
        ([{"role": "user", "content": [{"text": "a"}]}], "messages[0].content[0]", "no type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "null"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}],
            "messages[0].content[0]", "'image_url': only parts of type 'text' are supported",
        ),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]", "input_audio"),
        ([{"role": "user", "content": "a", "name": "Ada"}], "messages[0].name", "not supported"),
        ([{"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}], "messages[0].tool_calls", "not supported"),
        ([{"role": "user", "content": "half \ud800"}], "messages", "surrogate"),
    ],
)  # fmt: skip
def test_a_message_that_cannot_be_read_is_told_why(served: Served, messages: Any, param: str, told: str) -> None:
    body = json.dumps({"model": "tiny", "messages": messages})
    answer = served.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and told in error["message"]
    assert "Input should" not in error["message"]


def test_an_answer_can_be_sent_back_as_it_came(served: Served) -> None:
    """Its empty fields ask for nothing."""
    chats: Any = served.client().chat.completions
    message = chats.create(model="tiny", messages=TURN, **GREEDY).choices[0].message
    sent = {**message.model_dump(), "annotations": [], "function_call": None, "tool_calls": None}
    turns = [*TURN, sent, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert post(served, "/v1/chat/completions", messages=turns, max_tokens=1)[0] == 200


def test_the_templates_own_variables_may_be_set(served: Served) -> None:
    def chat(**variables: Any) -> tuple[int, dict[str, Any]]:
        return post(served, "/v1/chat/completions", messages=TURN, **GREEDY, chat_template_kwargs=variables)

    plain, quiet = chat(), chat(quiet=True)
    assert plain[0] == quiet[0] == 200
    assert plain[1]["usage"]["prompt_tokens"] > quiet[1]["usage"]["prompt_tokens"]
    assert chat(quiet=False)[1]["choices"] == plain[1]["choices"]
    for name, value in (
        ("quite", True), ("add_generation_prompt", False), ("chat_template", "x"), ("messages", "x"),
        ("tokenize", False), ("eos_token", "x"), ("", True), ("quiet", [1]), ("quiet", {"a": 1}),
    ):  # fmt: skip
        status, found = chat(**{name: value})
        assert status == 400 and found["error"]["param"] == f"chat_template_kwargs.{name}", name
    assert post(served, "/v1/completions", prompt="a", chat_template_kwargs={"quiet": True})[0] == 400


def test_two_lengths_that_differ_are_refused(served: Served) -> None:
    how = {"messages": TURN, "max_tokens": 4}
    assert post(served, "/v1/chat/completions", **how, max_completion_tokens=4)[0] == 200
    assert post(served, "/v1/chat/completions", **how, max_completion_tokens=5)[1]["error"]["param"] == "max_tokens"
