"""Fifty clients at once while facts come and go: every answer is right for one generation, and for a valid one."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from openai import AsyncOpenAI

from helpers.serving import PROMPT, Alone, Serve, Served

CLIENTS = 50
APPLE = "Apple was founded by"
TEXTS = (PROMPT, APPLE, "I know that Marie Curie was born in", "The Eiffel Tower was built by", "Berlin is in")


def test_fifty_clients_while_facts_are_added_and_removed(serve: Serve, alone: Alone) -> None:
    served = serve("a", "b")
    answers, generations = asyncio.run(_storm(served))
    assert len(answers) >= CLIENTS and {client for client, *_ in answers} == set(range(CLIENTS))  # none is lost
    known: dict[tuple[str, str, int | None], str] = {}
    for _, model, text, generation, said in answers:
        asked = (model, text, generation)
        if asked not in known:
            known[asked] = alone(served.paths.get(model.removeprefix("tiny+")), text, generation)
        assert said == known[asked]  # none is mixed up
    edited = {generation for _, model, _, generation, _ in answers if model == "tiny+a"}
    assert len(edited) > 1 and edited <= set(range(1, generations + 1))
    assert len({known[one] for one in known if one[:2] == ("tiny+a", APPLE)}) > 1  # a change changes answers


async def _storm(served: Served) -> tuple[list[tuple[int, str, str, int | None, str]], int]:
    """(client, model, text, generation, answer) of every request, and how many generations there were at the end."""
    client = AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0, timeout=120)
    done = asyncio.Event()
    committed = [1]
    answers: list[tuple[int, str, str, int | None, str]] = []

    async def ask(number: int) -> None:
        for turn in itertools.count():
            model = ("tiny+a", "tiny+b", "tiny+none", "tiny+a")[(number + turn) % 4]
            text = TEXTS[(number // 4 + turn) % len(TEXTS)]
            earliest = committed[-1]
            if number % 3:
                raw: Any = await client.completions.with_raw_response.create(
                    model=model, prompt=text, temperature=0, max_tokens=8
                )
                said = raw.parse().choices[0].text
            else:
                raw = await client.completions.with_raw_response.create(
                    model=model, prompt=text, temperature=0, max_tokens=8, stream=True
                )
                said = "".join([chunk.choices[0].text async for chunk in raw.parse()])
            header = raw.headers.get("X-NeuralDB-Generation")
            generation = None if header is None else int(header)
            if model == "tiny+a":  # valid while the request was on its way; the last change may not be noted yet
                assert generation is not None and earliest <= generation <= committed[-1] + 1
            answers.append((number, model, text, generation, said))
            if done.is_set():
                return

    async def change() -> None:
        for target in ("Madrid", "Tokyo", "Seattle"):
            fact = {"subject": "Apple", "prompt": "{} was founded by", "target": target, "id": "apple"}
            for method, path, body in (("POST", "/facts", [fact]), ("DELETE", "/facts/apple", None)):
                job = await asyncio.to_thread(served.change, method, path, json=body)
                assert job["state"] == "succeeded", job
                committed.append(job["generation"])
        done.set()

    await asyncio.gather(change(), *(ask(number) for number in range(CLIENTS)))
    await client.close()
    return answers, committed[-1]
