"""Keys are what the down-projection sees at the subject's last token, however they are batched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.errors import BuildError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import FFNSite, find_site
from neuraldb_faiss.solver import compute_keys
from neuraldb_faiss.solver import keys as keys_module

PREFIXES = (
    "The city of",
    "Therefore I think that Paris",
    "Because",
    "I was born in Spain",
    "You know Rome is",
)
FACTS = [
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome"),
    Fact("LeBron James", "{} plays the sport of", "tennis"),
    Fact("The", "{} language is", "French"),
    Fact("LeBron James", "{} was born in", "Warsaw"),
    Fact("Rome", "It is known, and I think that you know it, that the capital of Italy is {}, in", "Spain"),
]


def plain_key(model: Any, tokenizer: Any, site: FFNSite, text: str, subject_end: int) -> np.ndarray:
    """The module's input in one whole forward pass over one text."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < subject_end <= b)
    seen: list[torch.Tensor] = []
    handle = site.module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(input_ids=torch.tensor([encoded["input_ids"]]))
    handle.remove()
    return seen[0].reshape(-1, site.d1)[last].float().numpy()


def plain_rows(model: Any, tokenizer: Any, site: FFNSite, fact: Fact) -> tuple[np.ndarray, np.ndarray]:
    end = fact.subject_span[1]
    raw = plain_key(model, tokenizer, site, fact.text, end)
    behind = [plain_key(model, tokenizer, site, f"{x}. {fact.text}", end + len(x) + 2) for x in PREFIXES]
    return raw, np.mean(behind, axis=0)


@pytest.mark.parametrize("tokenizer_kind", ["bytelevel", "metaspace"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "opt", "gemma2", "bloom", "mpt"])
def test_two_rows_a_fact(kind: str, tokenizer_kind: str) -> None:
    model, tokenizer = tiny(kind, tokenizer_kind)
    site = find_site(model, 1)
    got = compute_keys(model, tokenizer, site, FACTS, PREFIXES)
    wanted = [row for fact in FACTS for row in plain_rows(model, tokenizer, site, fact)]
    assert got.keys.dtype == np.float32 and got.keys.shape == (10, site.d1)
    np.testing.assert_allclose(got.keys, wanted, rtol=1e-3, atol=1e-4)
    assert got.fact.dtype == np.int64 and got.fact.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    first = tokenizer("The", add_special_tokens=False)["input_ids"][0] if tokenizer_kind == "bytelevel" else -1
    assert got.token.dtype == np.int32 and got.token.tolist() == [-1, -1, -1, -1, first, -1, -1, -1, -1, -1]


def test_paper_mode_is_half_of_each() -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 2)
    two = compute_keys(model, tokenizer, site, FACTS, PREFIXES)
    one = compute_keys(model, tokenizer, site, FACTS, PREFIXES, "paper")
    np.testing.assert_allclose(one.keys, (two.keys[0::2] + two.keys[1::2]) / 2, rtol=1e-5, atol=1e-6)
    assert one.fact.tolist() == [0, 1, 2, 3, 4] and one.token.tolist() == [-1] * 5


@pytest.mark.parametrize("max_tokens", [1, 7, 60])
def test_batching_moves_keys_by_rounding_only(max_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    wanted = compute_keys(model, tokenizer, site, FACTS, PREFIXES).keys
    monkeypatch.setattr(keys_module, "MAX_TOKENS", max_tokens)
    got = compute_keys(model, tokenizer, site, FACTS, PREFIXES).keys
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_passes_end_at_the_site_and_prefixes_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    facts = [Fact(f"Place {i}", "The {} is located in the city of", "Rome") for i in range(40)]
    seen: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2].numel()))
    model.model.layers[2].register_forward_pre_hook(lambda *_: pytest.fail("ran past the site"))
    compute_keys(model, tokenizer, site, facts, PREFIXES)
    shared = sum(seen)
    seen.clear()
    monkeypatch.setattr(keys_module, "_common", lambda rows: 0)
    compute_keys(model, tokenizer, site, facts, PREFIXES)
    assert shared < 0.9 * sum(seen)


def test_a_model_without_a_usable_cache_gets_plain_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    wanted = compute_keys(model, tokenizer, site, FACTS, PREFIXES).keys
    forward = model.model.forward

    def forgetful(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("past_key_values", None)
        kwargs.pop("attention_mask", None)
        return forward(*args, **kwargs)

    model.model.forward = forgetful
    got = compute_keys(model, tokenizer, site, FACTS, PREFIXES).keys
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_gives_float32_keys() -> None:
    model, tokenizer = tiny("llama")
    wanted = compute_keys(model, tokenizer, find_site(model, 1), FACTS, PREFIXES).keys
    model = model.to(torch.bfloat16)
    got = compute_keys(model, tokenizer, find_site(model, 1), FACTS, PREFIXES).keys
    assert got.dtype == np.float32
    cosine = (got * wanted).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosine.min() > 0.999


def test_a_nan_names_the_fact_and_leaves_no_hook() -> None:
    model, tokenizer = tiny("llama")
    site = find_site(model, 1)
    ids = tokenizer("LeBron James")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[ids[0]] = float("nan")
    with pytest.raises(BuildError, match="LeBron James.*NaN"):
        compute_keys(model, tokenizer, site, FACTS, PREFIXES)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_no_prefix_is_refused() -> None:
    model, tokenizer = tiny("llama")
    with pytest.raises(BuildError, match="at least one prefix"):
        compute_keys(model, tokenizer, find_site(model, 1), FACTS, ())
    assert compute_keys(model, tokenizer, find_site(model, 1), [], PREFIXES).keys.shape == (0, 128)
