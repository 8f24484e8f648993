"""What one request makes the model fail at is its own trouble: the others of its batch are answered all the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import openai
import pytest
import torch

from helpers.serving import PROMPT, Brake, Serve, Served, until
from helpers.tiny import tiny_tokenizer
from neuraldb_faiss.cli.main import logging_to_stderr

TEXTS = (PROMPT, "Apple was founded by", "Berlin is in", "Marie Curie was born in", "The language of Italy is")
BAD = "Windows was created by"  # what the faulty models here fail at


def together(served: Served, brake: Brake, *asks: Callable[[], Any]) -> list[Any]:
    """What each gives, or raises, when all of them wait for one batch."""
    told: list[Any] = [None] * len(asks)

    def run(number: int) -> None:
        try:
            told[number] = asks[number]()
        except openai.APIStatusError as error:
            told[number] = error

    first = threading.Thread(target=lambda: served.say("one that runs before", max_tokens=1))
    first.start()
    until(lambda: brake.holds)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(asks))]
    for thread in threads:
        thread.start()
    until(lambda: served.metric("neuraldb_queue_length") == len(asks))
    brake.release()
    for thread in (first, *threads):
        thread.join(60)
    return told


def fail_at(served: Served, trouble: Callable[[torch.Tensor], bool], of: str = "secret detail") -> Any:
    """A model that raises where `trouble` says so of its input; calls of it are counted in `.calls`."""

    def check(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"] if "input_ids" in named else arguments[0]
        if trouble(ids):
            raise RuntimeError(of)

    return served.model.register_forward_pre_hook(check, with_kwargs=True)


def holds_bad(ids: torch.Tensor) -> bool:
    last = tiny_tokenizer()(BAD)["input_ids"][-3:]
    return any(row[-3:] == last for row in ids.tolist())


@pytest.mark.parametrize("bad", [1, 2])
def test_an_exception_is_told_to_the_request_that_causes_it(
    serve: Serve, caplog: pytest.LogCaptureFixture, bad: int
) -> None:
    served = serve()
    expected = [served.say(text) for text in TEXTS]
    hook = fail_at(served, holds_bad)
    prompts = [*TEXTS[:3], *[BAD] * bad, *TEXTS[3:]]
    with caplog.at_level(logging.WARNING, "neuraldb_faiss"):
        told = together(served, Brake(served.model), *(lambda text=text: served.say(text) for text in prompts))
    failed = [one for one in told if isinstance(one, openai.InternalServerError)]
    assert len(failed) == bad and all(failed[0].status_code == 500 for _ in failed)
    assert "secret detail" not in str(failed[0]) and "log" in str(failed[0])
    assert [one for one in told if isinstance(one, str)] == expected
    shown = [record for record in caplog.records if record.exc_info]
    assert len(shown) == bad and all("secret detail" in str(record.exc_info[1]) for record in shown if record.exc_info)
    hook.remove()
    assert served.say(BAD)


def test_the_log_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to_stderr(False):
        try:
            raise RuntimeError("secret detail")
        except RuntimeError:
            logging.getLogger("neuraldb_faiss.serving.batch").exception("the model failed")
    told = capsys.readouterr().err
    assert told.startswith("error: the model failed\nTraceback") and "RuntimeError: secret detail" in told


def test_texts_go_on_where_a_failed_batch_left_them(serve: Serve) -> None:
    """A failure in the middle of the answers, once: nothing is said twice, drawn anew, or lost."""
    served = serve()
    drawn = {"temperature": 1.5, "seed": 4, "max_tokens": 24}
    asks = [
        lambda: served.say(TEXTS[0], max_tokens=24),
        lambda: served.say(TEXTS[1], **drawn),
        lambda: served.say(TEXTS[2], max_tokens=4),  # has ended by then
        lambda: served.say(TEXTS[3], "tiny+none", max_tokens=24),
        lambda: "".join(
            one.choices[0].text
            for one in served.client().completions.create(
                model="tiny", prompt=TEXTS[4], temperature=0, max_tokens=24, stream=True
            )
        ),
        lambda: served.http.post("/explain", json={"prompt": PROMPT, "max_tokens": 24}).json(),
    ]
    expected = [ask() for ask in asks]
    steps = {"left": 10}

    def once(ids: torch.Tensor) -> bool:
        steps["left"] -= len(ids) > 1
        return steps["left"] == 0

    fail_at(served, once)
    assert together(served, Brake(served.model), *asks) == expected
    assert steps["left"] < 0


def test_a_request_of_several_texts_fails_as_a_whole(serve: Serve) -> None:
    served = serve()
    expected = served.say(TEXTS[1])
    fail_at(served, holds_bad)
    several: Any = lambda: served.client().completions.create(  # noqa: E731
        model="tiny", prompt=[PROMPT, BAD], max_tokens=200, temperature=0
    )
    told = together(served, Brake(served.model), several, lambda: served.say(TEXTS[1]))
    assert isinstance(told[0], openai.InternalServerError) and told[1] == expected


def test_logits_that_are_not_finite_are_an_error_of_their_row(serve: Serve) -> None:
    served = serve()
    expected = [served.say(text) for text in TEXTS]
    last = tiny_tokenizer()(BAD)["input_ids"]

    def spoil(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
        for number, row in enumerate(named["input_ids"].tolist()):
            if row[-3:] == last[-3:]:
                out.logits[number] = torch.nan

    served.model.register_forward_hook(spoil, with_kwargs=True)
    prompts = [BAD, *TEXTS, BAD]
    told = together(served, Brake(served.model), *(lambda text=text: served.say(text) for text in prompts))
    assert told[1:-1] == expected
    for one in (told[0], told[-1]):
        assert isinstance(one, openai.InternalServerError) and "not finite" in str(one)


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-30])
def test_tiny_temperatures_fail_nobody(serve: Serve, temperature: float) -> None:
    served = serve("a", "b")
    expected = [served.say(text, "tiny+a") for text in TEXTS]
    asks = [lambda text=text: served.say(text, "tiny+a") for text in TEXTS]
    hostile = [lambda: served.say(PROMPT, "tiny+b", temperature=temperature, top_p=0.9) for _ in range(3)]
    told = together(served, Brake(served.model), *asks, *hostile)
    assert told[: len(TEXTS)] == expected
    assert set(told[len(TEXTS) :]) == {served.say(PROMPT, "tiny+b")}
