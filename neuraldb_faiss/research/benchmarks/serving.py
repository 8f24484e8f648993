"""Throughput and latency of servers of OpenAI's API, asked by several clients at once, taking turns."""

from __future__ import annotations

import http.client
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from neuraldb_faiss.errors import NeuralDBError

PROMPT_WORDS = (8, 30, 120)
ANSWER_TOKENS = (8, 24, 96)
_WORDS = ("the", "city", "river", "of", "house", "and", "light", "walked", "through", "old", "town", "while", "people")
_PATIENCE = 900.0  # seconds until a request is given up


@dataclass(frozen=True)
class Asked:
    """A request to send: a text to continue, and how many tokens of answer."""

    prompt: str
    tokens: int


@dataclass(frozen=True)
class Answered:
    """What came of it. first, seconds: until the first piece of text and the end; tokens: of the answer, as the server
    counts them; error: None, or what went wrong."""

    first: float
    seconds: float
    tokens: int
    error: str | None = None


def requests(number: int, seed: int = 0) -> list[Asked]:
    """So many requests: short, middling and long prompts and answers, mixed."""
    chance = random.Random(seed)
    lengths = [(words, tokens) for words in PROMPT_WORDS for tokens in ANSWER_TOKENS]
    mixed = [lengths[n % len(lengths)] for n in range(number)]
    chance.shuffle(mixed)
    return [Asked(" ".join(chance.choices(_WORDS, k=words)).capitalize(), tokens) for words, tokens in mixed]


def ask(url: str, model: str, asked: Asked) -> Answered:
    """Send one request, as a stream, and read it to its end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=_PATIENCE)
    started = time.perf_counter()
    first, tokens = math.nan, 0
    body = {
        "model": model, "prompt": asked.prompt, "max_tokens": asked.tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    try:
        connection.request(
            "POST", _page(url, "completions"), json.dumps(body),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        answer = connection.getresponse()
        if answer.status != 200:
            return Answered(first, time.perf_counter() - started, 0, f"HTTP {answer.status}")
        for event in _events(answer):
            if "error" in event:
                return Answered(first, time.perf_counter() - started, tokens, str(event["error"].get("code")))
            if math.isnan(first) and event.get("choices"):
                first = time.perf_counter() - started
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    except OSError as error:
        return Answered(first, time.perf_counter() - started, tokens, type(error).__name__)
    finally:
        connection.close()
    return Answered(first, time.perf_counter() - started, tokens)


def _page(url: str, name: str) -> str:
    """The path of a page; addresses are given with and without the "/v1" that clients of OpenAI's take."""
    return f"{urlsplit(url).path.rstrip('/').removesuffix('/v1')}/v1/{name}"


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        text = line.decode().strip()
        if text.startswith("data: ") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data: "))


def bench_serving(
    servers: Mapping[str, str], *, clients: Sequence[int], number: int, repeats: int
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Ask each of these servers, in turn, by so many clients at once: each sends its next request when the last is
    answered, and repeats none that fails.

    Args:
        servers: name -> address. The first of the models that each serves is asked.
        clients: how many at once. number: requests, all together, for each of these counts. repeats: rounds.

    Returns:
        For each server and count, as "NAME_N_clients": tokens_per_second (the median of the rounds, and their range),
        seconds to the end of an answer and to its first text (median and 95th percentile over all rounds), requests,
        failures.

    Raises:
        NeuralDBError: a server does not answer.
    """
    models = {name: _model(url) for name, url in servers.items()}
    for name, url in servers.items():
        ask(url, models[name], Asked("The", 2))
    found: dict[str, dict[str, Any]] = {}
    for count in clients:
        speeds: dict[str, list[float]] = {name: [] for name in servers}
        answers: dict[str, list[Answered]] = {name: [] for name in servers}
        for turn in range(repeats):
            for name, url in servers.items():
                start = time.perf_counter()
                with ThreadPoolExecutor(count) as pool:
                    told = list(pool.map(partial(ask, url, models[name]), requests(number, turn)))
                took = time.perf_counter() - start
                answers[name] += told
                speeds[name].append(sum(one.tokens for one in told if one.error is None) / took)
        for name in servers:
            found[f"{name}_{count}_clients"] = _row(speeds[name], answers[name])
    return found


def _row(speeds: list[float], answers: list[Answered]) -> dict[str, Any]:
    good = [one for one in answers if one.error is None]
    return {
        "tokens_per_second": round(_at(0.5, speeds), 2),
        "tokens_per_second_range": [round(min(speeds), 2), round(max(speeds), 2)],
        "seconds_median": round(_at(0.5, [one.seconds for one in good]), 2),
        "seconds_p95": round(_at(0.95, [one.seconds for one in good]), 2),
        "first_text_median": round(_at(0.5, [one.first for one in good]), 2),
        "first_text_p95": round(_at(0.95, [one.first for one in good]), 2),
        "requests": len(answers), "failures": len(answers) - len(good),
        "errors": sorted({one.error for one in answers if one.error is not None}),
    }  # fmt: skip


def _at(share: float, values: Sequence[float]) -> float:
    """The value that this share of them is not above."""
    known = sorted(one for one in values if not math.isnan(one))
    return known[max(0, math.ceil(share * len(known)) - 1)] if known else math.nan


def _model(url: str) -> str:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("GET", _page(url, "models"))
        return str(json.loads(connection.getresponse().read())["data"][0]["id"])
    except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
        raise NeuralDBError(f"no server of OpenAI's API answers at {url} ({type(error).__name__}): start it") from None
    finally:
        connection.close()


@contextmanager
def served(db: Path, model: str | None) -> Iterator[str]:
    """`neuraldb serve` of this database in a process of its own; its address. Raises NeuralDBError where it ends."""
    command = [sys.executable, "-m", "neuraldb_faiss.cli", "serve", str(db), "--port", "0"]
    command += [] if model is None else ["--model", model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stderr is not None
            found = next((word for line in process.stderr for word in line.split() if word.startswith("http://")), None)
            if found is None:
                raise NeuralDBError(f"`{' '.join(command)}` did not start: run it to see why")
            yield found.rstrip("/.,:")
        finally:
            process.terminate()
