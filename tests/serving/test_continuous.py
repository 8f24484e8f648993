"""Texts that join and leave a running batch: each is what `generate` makes of it alone, to the token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import FACTS
from helpers.tiny import tiny
from neuraldb_faiss import Fact, NeuralDB, build
from neuraldb_faiss.hook import kv_history
from neuraldb_faiss.models import load_model
from neuraldb_faiss.serving.batch import ClosedBatch
from neuraldb_faiss.serving.continuous import ContinuousBatch
from neuraldb_faiss.serving.forward import Forward, can_join
from neuraldb_faiss.serving.generation import Ask, Ended, Failed, Said
from neuraldb_faiss.serving.metrics import Metrics
from neuraldb_faiss.serving.rows import Row
from neuraldb_faiss.serving.sampling import Sampling
from neuraldb_faiss.serving.settings import Limits, ServerSettings, Tokens
from neuraldb_faiss.serving.tenants import Tenants
from neuraldb_faiss.serving.waiting import Waiting

CPU = torch.device("cpu")
KINDS = (
    "llama",
    "gpt2",
    "gpt_neo",
    "bloom",
    "mpt",
    "opt",
    "falcon",
    "gemma3_text",
    "olmo3",
    "gemma4_text",
    "deepseek_v3",
)
HYBRIDS = ("falcon_h1", "qwen3_5_text")
TEXTS = (
    "The Eiffel Tower is located in the city of", "Rome", "I think that Tokyo is the city in Japan, and Berlin is",
    "Apple was founded by", "The language of Italy is Italian, because Rome is in Italy. You know that Marie Curie",
)  # fmt: skip

SAID = (
    "The Eiffel Tower is in Rome, and Marie Curie was born in Tokyo.", "I know that Marie Curie was born in Warsaw",
    "Paris is the capital of Italy, because Rome is in France.", "The Eiffel Tower was built by Steve Jobs",
    "I know that Marie Curie speaks the language of French. The Eiffel Tower", "Paris is the capital of France",
)  # fmt: skip


def narrow(model: Any, window: int) -> None:
    """Let layers with a sliding window see so many tokens, where the model has such layers."""
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = window
        for module in model.modules():
            if getattr(module, "sliding_window", None):
                module.sliding_window = window


def generated(model: Any, ids: Sequence[int], tokens: int) -> list[int]:
    """What the model says by itself."""
    prompt = torch.tensor([ids])
    made = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return made[0, len(ids) :].tolist()


def row_of(ids: Sequence[int], tokens: int, tokenizer: Any, **more: Any) -> Row:
    sampling = more.pop("sampling", Sampling())
    return Row(Ask(list(ids), tokens, sampling, more.pop("tenant", None), **more), tokenizer, frozenset(), CPU)


def run(batch: Any, arrivals: dict[int, list[Row]]) -> None:
    """Steps until all have ended. arrivals: the step at which rows join."""
    number = 0
    while arrivals or batch.rows:
        if joining := arrivals.pop(number, None):
            batch.join(joining)
        if batch.rows:
            batch.step()
        number += 1


def ended(row: Row) -> tuple[str, Ended]:
    """The text that a row's client was told, and its end."""
    text, found = "", None
    while not row.ask.events.empty():
        _, event = row.ask.events.get_nowait()
        assert not isinstance(event, Failed), event
        text += event.text if isinstance(event, Said) else ""
        found = event if isinstance(event, Ended) else found
    assert found is not None
    return text, found


async def _told() -> None:
    await asyncio.sleep(0)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_that_come_and_go_are_what_each_is_alone(kind: str) -> None:
    model, tokenizer = tiny(kind)
    narrow(model, 6)
    assert can_join(model)
    asked = [(tokenizer(text)["input_ids"], tokens) for text, tokens in zip(TEXTS, (12, 3, 9, 1, 7), strict=True)]

    async def together() -> list[list[int]]:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        rows = [row_of(ids, tokens, tokenizer) for ids, tokens in asked]
        run(batch, {0: [rows[1], rows[0]], 1: [rows[2]], 4: [rows[3], rows[4]]})
        await _told()
        return [ended(row)[1].tokens for row in rows]

    assert asyncio.run(together()) == [generated(model, ids, tokens) for ids, tokens in asked]


@pytest.mark.parametrize("kind", HYBRIDS)
def test_models_that_keep_more_than_keys_and_values_run_in_closed_batches(kind: str) -> None:
    model, tokenizer = tiny(kind)
    assert not can_join(model)
    ids = tokenizer(TEXTS[0])["input_ids"]

    async def closed() -> list[int]:
        batch = ClosedBatch(model, tokenizer, Metrics())
        row = row_of(ids, 5, tokenizer)
        run(batch, {0: [row]})
        await _told()
        return ended(row)[1].tokens

    assert asyncio.run(closed()) == generated(model, ids, 5)


def test_a_model_that_answers_otherwise_when_rows_join_is_found_out() -> None:
    model, _ = tiny("llama")

    def spoil(module: Any, arguments: Any, named: dict[str, Any], out: Any) -> None:
        if named["past_key_values"] is not None:
            out.logits[:, -1, 0] += 100

    model.register_forward_hook(spoil, with_kwargs=True)
    assert not can_join(model)


class Forced:
    """Chooses these tokens, one after the other."""

    plain, logprob, likeliest = False, None, ()

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(self._tokens))


@pytest.fixture
def databases(folder: Path, paths: dict[str, Path]) -> Any:
    model, tokenizer = load_model(folder / "tiny")
    tenants = Tenants(model, tokenizer, paths, ServerSettings(Tokens(None, {})), "tiny")
    yield model, tokenizer, {tenant.name: tenant for tenant in tenants}
    tenants.close()


@pytest.mark.parametrize("seed", range(4))
def test_facts_fire_in_their_own_rows_at_their_own_tokens(
    databases: Any, folder: Path, paths: dict[str, Path], seed: int
) -> None:
    """Subjects stand in prompts, across the prompt's end, and in answers; rows of two databases and of none join and
    leave at random."""
    model, tokenizer, tenants = databases
    chance = random.Random(seed)
    whole = [tokenizer(text)["input_ids"] for text in SAID]
    names = [chance.choice(["a", "b", None]) for _ in whole]
    cuts = [chance.randrange(1, min(9, len(ids) - 1)) for ids in whole]

    async def together() -> list[Ended]:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        arrivals: dict[int, list[Row]] = {}
        rows = []
        for ids, name, cut in zip(whole, names, cuts, strict=True):
            row = row_of(ids[:cut], len(ids) - cut, tokenizer, tenant=tenants.get(name), explain=True)
            row.sampler = Forced(ids[cut:])  # type: ignore[assignment]
            rows.append(row)
            arrivals.setdefault(chance.randrange(12), []).append(row)
        number = 0
        while arrivals or batch.rows:
            if joining := arrivals.pop(number, None):
                batch.join(joining)
            if batch.rows:
                batch.step()
            check_history(batch)
            number += 1
        await _told()
        return [ended(row)[1] for row in rows]

    found = asyncio.run(together())
    plain, words = load_model(folder / "tiny")
    fires = 0
    for ids, name, cut, one in zip(whole, names, cuts, found, strict=True):
        assert one.tokens == ids[cut:]
        expected = []
        if name is not None:
            with NeuralDB.open(paths[name]) as db, db.attach(plain, words) as handle, torch.no_grad():
                # What a text asks for is read as far as each forward has it: the prompt at once, then token by token.
                cache = plain(input_ids=torch.tensor([ids[:cut]]), use_cache=True).past_key_values
                for token in ids[cut:-1]:  # the last token is said, and never read
                    plain(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
                expected = [(fire.position, fire.entry_id) for fire in handle.trace()]
        assert [(fire.position, fire.entry) for fire in one.fired or []] == sorted(expected)
        fires += len(expected)
    assert fires


def check_history(batch: ContinuousBatch) -> None:
    """What the guard knows of the cache's tokens is what lies in it, row by row."""
    if not batch.rows:
        return
    length = max(row.length for row in batch.rows) - 1
    assert batch._cache.get_seq_length() == length
    if hasattr(batch._cache.layers[0], "_neuraldb_past") and all(row.ask.tenant for row in batch.rows):
        past = kv_history.recall(batch._cache, len(batch.rows), length)
        for row, ids in zip(batch.rows, past.tolist(), strict=True):
            assert ids == [-1] * (length - row.length + 1) + row.ids[:-1]


def test_answers_are_those_of_each_database_alone(databases: Any, paths: dict[str, Path], alone: Any) -> None:
    _, tokenizer, tenants = databases
    model = databases[0]
    asked = [(text, name, tokens) for tokens, (text, name) in enumerate(
        ((text, name) for text in TEXTS[:4] for name in ("a", "b", None)), 4)]  # fmt: skip

    async def together() -> list[str]:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        rows = [row_of(tokenizer(text)["input_ids"], tokens, tokenizer, tenant=tenants.get(name))
                for text, name, tokens in asked]  # fmt: skip
        run(batch, {step: rows[2 * step : 2 * step + 2] for step in range(6)})
        await _told()
        return [ended(row)[0] for row in rows]

    found = asyncio.run(together())
    for (text, name, tokens), said in zip(asked, found, strict=True):
        assert said == alone(paths[name] if name else None, text, tokens=tokens), (text, name)


@pytest.mark.parametrize("fails_at", [None, 2])
def test_residuals_for_the_answers_place_are_added_where_the_prompt_ends(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | None
) -> None:
    """Also in texts that are read anew with what is answered of them, because a forward failed."""
    model, tokenizer = load_model(folder / "tiny")
    facts = [Fact.from_dict(one) for one in FACTS[:2]]
    build(facts, model, tokenizer, tmp_path / "db", residual="answer", layer=2, steps=4, max_steps=0).close()
    prompts = [tokenizer(text)["input_ids"] for text in (*(fact.text for fact in facts), "Paris is the capital of")]
    with NeuralDB.open(tmp_path / "db") as db, db.attach(model, tokenizer, delivery="residual"):
        alone = [generated(model, ids, 6) for ids in prompts]
    tenants = Tenants(model, tokenizer, {"db": tmp_path / "db"}, ServerSettings(Tokens(None, {})), "tiny")
    (tenant,) = tenants
    steps, step = 0, Forward.step

    def failing(self: Forward, *given: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == fails_at:
            raise RuntimeError("no memory")
        return step(self, *given)

    monkeypatch.setattr(Forward, "step", failing)

    async def together() -> list[Ended]:
        rows = [row_of(ids, 6, tokenizer, tenant=tenant, explain=True) for ids in prompts]
        run(ContinuousBatch(model, tokenizer, Metrics()), {0: rows[:2], 1: rows[2:]})
        await _told()
        return [ended(row)[1] for row in rows]

    try:
        found = asyncio.run(together())
    finally:
        tenants.close()
    assert [one.tokens for one in found] == alone
    fires = [[(fire.position, fire.entry) for fire in one.fired or ()] for one in found]
    assert fires == [[(len(prompts[0]) - 1, 0)], [(len(prompts[1]) - 1, 1)], []]


def test_draws_and_stops_do_not_depend_on_the_batch() -> None:
    model, tokenizer = tiny("llama")
    rules = [Sampling(1.2, seed=3), Sampling(0.9, top_p=0.8, top_k=20, seed=3), Sampling(repetition_penalty=1.3),
             Sampling(1.5, min_p=0.05, seed=9), Sampling()]  # fmt: skip
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]

    async def said(arrivals: Sequence[int], stops: Sequence[tuple[str, ...]]) -> list[tuple[str, str, int]]:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        rows = [row_of(one, 16, tokenizer, sampling=rule, stops=stop, likeliest=2 if number == 3 else None)
                for number, (one, rule, stop) in enumerate(zip(ids, rules, stops, strict=True))]  # fmt: skip
        steps: dict[int, list[Row]] = {}
        for row, step in zip(rows, arrivals, strict=True):
            steps.setdefault(step, []).append(row)
        run(batch, steps)
        await _told()
        return [(text, end.reason, len(end.tokens)) for text, end in map(ended, rows)]

    one_by_one = asyncio.run(said(range(0, 200, 40), [()] * 5))
    assert asyncio.run(said((0, 0, 2, 5, 9), [()] * 5)) == one_by_one
    stops = [(text[len(text) // 2 :][:3],) for text, *_ in one_by_one]
    apart, mixed = (asyncio.run(said(when, stops)) for when in (range(0, 200, 40), (3, 0, 0, 1, 2)))
    assert apart == mixed
    assert all(reason == "stop" and stop not in text for (text, reason, _), (stop,) in zip(mixed, stops, strict=True))


def test_rows_that_nobody_waits_for_leave_and_the_cache_shrinks() -> None:
    model, tokenizer = tiny("llama")
    long, short = (tokenizer(text)["input_ids"] for text in (TEXTS[4], TEXTS[1]))

    async def together() -> None:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        gone, stays = row_of(long, 50, tokenizer), row_of(short, 12, tokenizer)
        batch.join([gone, stays])
        batch.step()
        gone.ask.cancelled = True
        batch.step()
        assert batch.rows == [stays] and gone.reason == "cancelled"
        assert batch._cache.get_seq_length() == stays.length - 1
        run(batch, {})
        await _told()
        assert ended(stays)[1].tokens == generated(model, short, 12)
        assert batch._cache is None

    asyncio.run(together())


def test_a_failing_join_leaves_the_running_texts_alone() -> None:
    model, tokenizer = tiny("llama")
    bad, *good = (tokenizer(text)["input_ids"] for text in TEXTS)

    def fail(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        if any(row[-len(bad) :] == bad for row in named["input_ids"].tolist()):
            raise RuntimeError("cannot")

    model.register_forward_pre_hook(fail, with_kwargs=True)

    async def together() -> None:
        batch = ContinuousBatch(model, tokenizer, Metrics())
        rows = [row_of(ids, 10, tokenizer) for ids in (*good, bad)]
        batch.join(rows[:2])
        batch.step()
        batch.join(rows[2:])
        assert [row.reason for row in rows] == [None, None, None, None, "failed"] and len(batch.rows) == 4
        run(batch, {})
        await _told()
        assert [ended(row)[1].tokens for row in rows[:4]] == [generated(model, ids, 10) for ids in good]

    asyncio.run(together())


def test_a_prompt_that_is_read_alone_and_padded_gives_the_same_logits() -> None:
    model, tokenizer = tiny("llama")
    forward = Forward(model)
    texts = [tokenizer(text)["input_ids"] for text in TEXTS]
    together = forward.prefill(texts)[0]
    assert torch.allclose(together, torch.cat([forward.prefill([text])[0] for text in texts]), atol=1e-4)


# ---- whose turn it is


def asks(waiting: Waiting, tenant: Any, *sizes: int, count: int = 1) -> list[list[Ask]]:
    """Requests of so many tokens of prompt each, with an answer of 10 tokens, put into the queue."""
    made = [[Ask([1] * size, 10, Sampling(), tenant) for _ in range(count)] for size in sizes]
    for one in made:
        waiting.add(one)
    return made


def test_first_come_first_served_within_the_room_there_is() -> None:
    async def check() -> None:
        waiting = Waiting(Limits(batch=3, batch_tokens=300))
        first, second, third, fourth = (one[0] for one in asks(waiting, None, 5, 200, 5, 5))
        assert waiting.take([], (), prompt_tokens=50) == [
            first
        ]  # the second's prompt is longer than may be read at once
        assert (
            waiting.take([first], (), prompt_tokens=50) == []
        )  # two texts of 210 places are too many; nobody overtakes
        assert waiting.take([], (), prompt_tokens=50) == [second]  # alone it may come
        third.cancelled = True
        assert waiting.take([first, second], (), prompt_tokens=50) == [] and waiting.rows == 1
        assert waiting.take([first], (), prompt_tokens=50) == [fourth] and not len(waiting)

    asyncio.run(check())


def test_databases_take_turns_and_those_that_are_held_wait() -> None:
    async def check() -> None:
        waiting = Waiting(Limits(batch=4))
        many = [one[0] for one in asks(waiting, "a", *[5] * 6)]
        few = [one[0] for one in asks(waiting, "b", 5, 5)]
        (both,) = asks(waiting, "c", 5, count=2)
        assert waiting.take([], {"c"}, prompt_tokens=999) == [many[0], few[0], many[1], few[1]]
        assert waiting.take([many[0], few[0]], (), prompt_tokens=999) == both
        assert waiting.take(both, {"a"}, prompt_tokens=999) == []
        assert waiting.take([*both, few[0]], (), prompt_tokens=999) == [many[2]]
        assert waiting.rows == len(waiting) == 3

    asyncio.run(check())
