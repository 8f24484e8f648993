"""The hook against a plain reference: one text at a time, no padding, no cache, NumPy in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from helpers.hooked import Case, numbered_positions, triples


def test_the_reference_is_worth_something(case: Case) -> None:
    logits, fires = case.references()
    assert set(fires) >= {(0, 0, 0), (0, 4, 1), (1, 7, 2), (3, 5, 3)}
    assert not any(position == 0 and text != 0 for text, position, _ in fires)
    with torch.no_grad():
        assert (case.model(torch.tensor([case.ids[0]])).logits[0] - logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("use_cache", [True, False])
def test_one_text_at_a_time(case: Case, use_cache: bool) -> None:
    logits, fires = case.references()
    for i, ids in enumerate(case.ids):
        with case.attach() as handle, torch.no_grad():
            got = case.model(torch.tensor([ids]), use_cache=use_cache).logits[0]
            torch.testing.assert_close(got, logits[i], atol=1e-4, rtol=1e-4)
            assert [(i, *rest) for _, *rest in triples(handle)] == [f for f in fires if f[0] == i]
            assert handle.calls == 1 and handle.hits == len(handle.trace())


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("positional", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(case: Case, side: str, positional: bool, inner: bool) -> None:
    logits, fires = case.references()
    batch = case.padded(side)
    numbers = numbered_positions(batch["attention_mask"])
    with case.attach() as handle, torch.no_grad():
        if inner:
            hidden = case.model.base_model(**batch, **numbers).last_hidden_state
            got = case.model.get_output_embeddings()(hidden)
        elif positional:
            got = case.model(batch["input_ids"], attention_mask=batch["attention_mask"], **numbers).logits
        else:
            got = case.model(**batch, **numbers).logits
        assert triples(handle) == fires
    for row, (want, mask) in enumerate(zip(logits, batch["attention_mask"], strict=True)):
        torch.testing.assert_close(got[row][mask.bool()], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dynamic", "static", "static, square mask"])
@pytest.mark.parametrize("cuts", [(5,), (1, 2, 3), (9, 10)])
@pytest.mark.parametrize("side", ["left", "none"])
def test_chunked_prefill(case: Case, side: str, cuts: tuple[int, ...], kind: str) -> None:
    _, fires = case.references()
    batch = case.padded("left")
    if side == "none":
        batch = {"input_ids": torch.tensor([case.ids[1]])}
        fires = [(0, position, entry) for text, position, entry in fires if text == 1]
    ids = batch["input_ids"]
    length = ids.shape[1]
    cache: Any = DynamicCache(config=case.model.config)
    if kind != "dynamic":
        cache = StaticCache(config=case.model.config, max_cache_len=length + 4)
    mask = batch.get("attention_mask")
    with case.attach() as handle, torch.no_grad():
        for start, stop in zip((0, *cuts), (*cuts, length), strict=True):
            given: dict[str, Any] = {}
            if mask is not None:
                numbers = numbered_positions(mask)
                given = {key: rows[:, start:stop] for key, rows in numbers.items()}
                given["attention_mask"] = mask[:, :stop]
            if kind == "static, square mask":
                row = torch.ones_like(ids) if mask is None else mask
                column = torch.arange(length + 4)
                real = torch.nn.functional.pad(row, (0, 4)).bool()
                causal = column[None, :] <= torch.arange(start, stop)[:, None]
                seen = (causal[None] & real[:, None])[:, None]
                if case.model.config._attn_implementation == "eager":  # it adds the mask
                    seen = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
                given["attention_mask"] = seen
            case.model(ids[:, start:stop], past_key_values=cache, use_cache=True, **given)
        assert triples(handle) == fires


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generate(case: Case, options: dict[str, Any]) -> None:
    batch = case.padded("left")
    steps = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone, fired = [], []
    with case.attach() as handle:
        for ids in case.ids:
            alone.append(case.model.generate(torch.tensor([ids]), **steps, **options)[0, len(ids) :])
            fired.append({(fire.position, fire.entry_id) for fire in handle.trace()})
            handle.clear_trace()
            assert handle.trace() == []
        got = case.model.generate(**batch, **steps, **options)[:, batch["input_ids"].shape[1] :]
        for row, want in enumerate(alone):
            assert got[row].tolist() == want.tolist()
            if "num_beams" not in options:
                mine = {(fire.position, fire.entry_id) for fire in handle.trace() if fire.sequence == row}
                assert mine == fired[row]
    assert (0, 0) in fired[0] and all((0, 0) not in others for others in fired[1:])


def test_a_text_gets_its_own_first_token_back_in_the_middle(llama: Case) -> None:
    """The key of position 0 belongs to position 0: the same token later does not fire it."""
    first = llama.ids[0][0]
    with llama.attach() as handle, torch.no_grad():
        llama.model(torch.tensor([[llama.ids[1][0], first, first]]))
        assert all(fire.entry_id != 0 for fire in handle.trace())
        llama.model(torch.tensor([[first, first]]))
        assert [fire.position for fire in handle.trace() if fire.entry_id == 0] == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tiny_shape: tuple[Any, Any], dtype: torch.dtype) -> None:
    case = Case(*tiny_shape)
    case.model.to(dtype)
    _, fires = Case(case.model, case.words).references()
    batch = case.padded("left")
    with case.attach() as handle, torch.no_grad():
        logits = case.model(**batch, **numbered_positions(batch["attention_mask"])).logits
        assert logits.dtype == dtype
        assert {(0, 0, 0), (0, 4, 1), (1, 7, 2), (3, 5, 3)} <= set(triples(handle))
        assert set(triples(handle)) == set(fires)
