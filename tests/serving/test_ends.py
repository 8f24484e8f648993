"""Where an answer ends: at end tokens of the model, the tokenizer and the template, and at those of the request."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from tokenizers import AddedToken

from helpers.serving import PROMPT, Served, serving
from helpers.tiny import tiny
from neuraldb_faiss import Fact, build
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.settings import Limits, Tokens

TURN_END, OTHER = "<|im_end|>", "<|pause|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model whose configuration names no end but <|endoftext|>, though its template ends turns with <|im_end|>."""
    root = tmp_path_factory.mktemp("ends")
    model, shared = tiny("llama")
    words = copy.deepcopy(shared)
    names = ["<|im_start|>", TURN_END, OTHER]
    words.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    words.chat_template = CHATML
    model.resize_token_embeddings(len(words), mean_resizing=False)
    with torch.no_grad():  # or it says one of them by chance
        model.get_output_embeddings().weight[len(shared) :] = 0
    model.save_pretrained(root / "tiny")
    words.save_pretrained(root / "tiny")
    loaded, tokenizer = load_model(root / "tiny")
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    fact = Fact("Eiffel Tower", "The {} is located in the city of", "Rome")
    build([fact], loaded, tokenizer, root / "a", steps=2, max_steps=0).close()
    with ExitStack() as stack:
        yield stack.enter_context(serving(root, {"a": root / "a"}, Tokens(None, {}), Limits(grace=5)))


def saying(served: Served, name: str, step: int, **body: Any) -> dict[str, Any]:
    """The answer of a model that says this token in this step, and goes on after it."""
    token = _ids(served)[name]
    steps = {"made": 0}

    def speak(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
        if steps["made"] == step:
            out.logits[:, -1, token] = 1e4
        steps["made"] += 1

    hook = served.model.register_forward_hook(speak, with_kwargs=True)
    try:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        answer = served.http.post(path, json={"model": "tiny", "temperature": 0, "max_tokens": 12, **body})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())
    finally:
        hook.remove()


def _ids(served: Served) -> dict[str, int]:
    size = served.model.get_input_embeddings().weight.shape[0]
    return {"<|im_start|>": size - 3, TURN_END: size - 2, OTHER: size - 1, "<|endoftext|>": 0}


@pytest.mark.parametrize("name", [TURN_END, "<|endoftext|>"])
def test_an_end_token_ends_chats_and_texts(served: Served, name: str) -> None:
    for body in ({"prompt": PROMPT}, {"messages": TURN}):
        found = saying(served, name, 4, **body)
        assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] == 5
        assert name not in str(found)


def test_a_stop_string_that_is_a_special_token_ends_there(served: Served) -> None:
    for stop in (OTHER, ["never", OTHER]):
        found = saying(served, OTHER, 4, prompt=PROMPT, stop=stop)
        assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] == 5
    found = saying(served, OTHER, 4, prompt=PROMPT)  # it is no end by itself
    assert found["choices"][0]["finish_reason"] == "length" and found["usage"]["completion_tokens"] == 12


def test_a_stop_string_with_a_special_token_in_it_is_refused(served: Served) -> None:
    body = {"model": "tiny", "prompt": PROMPT, "stop": [f"{OTHER}\n"]}
    error = served.http.post("/v1/completions", json=body).json()["error"]
    assert error["param"] == "stop" and OTHER in error["message"]


def test_stop_token_ids_end_there(served: Served) -> None:
    plain = saying(served, OTHER, 99, prompt=PROMPT)["choices"][0]["text"]
    found = saying(served, OTHER, 4, prompt=PROMPT, stop_token_ids=[_ids(served)[OTHER]])
    assert found["choices"][0]["finish_reason"] == "stop" and found["usage"]["completion_tokens"] == 5
    assert found["choices"][0]["text"] and plain.startswith(found["choices"][0]["text"])


def test_an_explained_answer_ends_there_too(served: Served) -> None:
    token = _ids(served)[TURN_END]

    def speak(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
        out.logits[:, -1, token] = 1e4

    hook = served.model.register_forward_hook(speak, with_kwargs=True)
    try:
        found = served.http.post("/explain", json={"prompt": PROMPT, "max_tokens": 12}).json()
    finally:
        hook.remove()
    assert found["tokens"][-1] == TURN_END and len(found["tokens"]) == found["prompt_tokens"] + 1
    assert found["text"] == ""
