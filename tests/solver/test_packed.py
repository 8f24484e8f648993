"""Rows end to end in one pass give what each gives by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.tiny import tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.solver.forward.packed import Heads, Packing, Past

KINDS = ("llama", "qwen3", "gpt2", "gpt_neox", "opt", "phi", "gemma3_text", "olmo2", "cohere", "stablelm")
WINDOWED = ("mistral", "gemma3_text")
TEXTS = st.lists(st.integers(3, 60), min_size=1, max_size=9).map(tuple)


def models() -> Any:
    """Made when first asked for, then kept: every example needs one."""
    made: dict[tuple[str, bool], Any] = {}

    def model(kind: str, window: bool = False) -> Any:
        if (kind, window) not in made:
            made[kind, window] = tiny(kind)[0]
            if window:
                made[kind, window].config.sliding_window = 4
                for module in made[kind, window].modules():
                    if getattr(module, "sliding_window", None) is not None:
                        module.sliding_window = 4
        return made[kind, window]

    return model


MODEL = models()


def alone(model: Any, row: tuple[int, ...]) -> Tensor:
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0]


@torch.no_grad()
def check(model: Any, rows: list[tuple[int, ...]], packing: Packing, read: list[int]) -> None:
    logits = packing.run().logits[0]
    for row, n, start in zip(rows, read, packing.start.tolist(), strict=True):
        wanted = alone(model, row)[n:]
        torch.testing.assert_close(logits[start : start + len(wanted)], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(TEXTS, min_size=1, max_size=5))
def test_rows_do_not_see_each_other(kind: str, rows: list[tuple[int, ...]]) -> None:
    model = MODEL(kind)
    check(model, rows, Packing(model, rows, None), [0] * len(rows))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=5), data=st.data())
def test_each_row_goes_on_from_its_own_past(kind: str, rows: list[tuple[tuple[int, ...], ...]], data: Any) -> None:
    """Of which some may have none, and some may be dropped."""
    model = MODEL(kind)
    rows = [(data.draw(st.sampled_from([first, ()])), second, third) for first, second, third in rows]
    past: Past | None = None
    if any(first for first, _, _ in rows):
        past = Packing(model, [first for first, _, _ in rows], None).read()
    past = Packing(model, [second for _, second, _ in rows], past).read()
    kept = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, unique=True))
    packing = Packing(model, [rows[i][2] for i in kept], past.select(torch.tensor(kept)))
    whole = [sum(rows[i], ()) for i in kept]
    check(model, whole, packing, [len(whole[n]) - len(rows[i][2]) for n, i in enumerate(kept)])


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_is_kept(kind: str) -> None:
    model = MODEL(kind, window=True)
    rows = [tuple(range(5, 17)), tuple(range(20, 29))]
    ids = torch.tensor([rows[0]])
    with torch.no_grad():
        assert not torch.allclose(model(input_ids=ids).logits, MODEL(kind)(input_ids=ids).logits, atol=1e-3)
    past = Packing(model, [row[:5] for row in rows], None).read()
    check(model, rows, Packing(model, [row[5:] for row in rows], past), [5, 5])


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3), ends=st.lists(TEXTS, min_size=1, max_size=4), data=st.data())
def test_what_rows_begin_with_is_read_once(
    texts: list[tuple[int, ...]], ends: list[tuple[int, ...]], data: Any
) -> None:
    model = MODEL("llama")
    rows = [data.draw(st.sampled_from([*texts, ()])) + end for end in ends]
    read, past = Heads(model, texts).before(rows)
    longest = [max(len(t) for t in [*texts, ()] if row[: len(t)] == t) for row in rows]
    assert read == longest
    left = [row[n:] for row, n in zip(rows, read, strict=True)]
    if all(left):
        check(model, rows, Packing(model, left, past), read)


def test_the_gradient_is_that_of_each_row_alone() -> None:
    model, rows = MODEL("llama"), [(5, 9, 11, 4), (7, 8), (9, 3, 30)]
    added = torch.zeros(3, 64, requires_grad=True)
    packing = Packing(model, rows, None)

    def add(_: Any, __: Any, out: Tensor) -> Tensor:
        return out.index_add(1, packing.start, added[None])

    handle = model.model.layers[1].mlp.down_proj.register_forward_hook(add)
    try:
        (together,) = torch.autograd.grad(packing.run().logits.square().sum(), added)
    finally:
        handle.remove()
    for number, row in enumerate(rows):
        one = torch.zeros(64, requires_grad=True)

        def add_one(_: Any, __: Any, out: Tensor, one: Tensor = one) -> Tensor:
            return torch.cat([out[:, :1] + one, out[:, 1:]], 1)

        handle = model.model.layers[1].mlp.down_proj.register_forward_hook(add_one)
        try:
            (wanted,) = torch.autograd.grad(alone(model, row).square().sum(), one)
        finally:
            handle.remove()
        torch.testing.assert_close(together[number], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "told"), [("gpt_oss", None), ("qwen3_5_text", "exchanged"), ("gemma2", None)])
def test_an_attention_that_does_more_is_refused(kind: str, told: str | None) -> None:
    model = tiny(kind)[0]
    was = model.config._attn_implementation
    if told is None:
        model.config._attn_implementation = "sdpa"  # as if it could
        told = "softcap" if kind == "gemma2" else "s_aux"
    with pytest.raises(ModelError, match=told):
        Packing(model, [(4, 5, 6)], None).run()
    assert model.config._attn_implementation in (was, "sdpa")


def test_an_attention_of_another_kind_is_refused() -> None:
    model = tiny("llama")[0]
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="exchanged"):
        Packing(model, [(4, 5, 6)], None).read()


def test_the_models_attention_comes_back_whatever_happens() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, known = tiny("llama")[0], set(ALL_ATTENTION_FUNCTIONS)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.model.layers[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        Packing(model, [(4, 5, 6)], None).run()
    handle.remove()
    assert model.config._attn_implementation == "sdpa" and set(ALL_ATTENTION_FUNCTIONS) == known
    assert torch.isfinite(alone(model, (4, 5, 6))).all()
