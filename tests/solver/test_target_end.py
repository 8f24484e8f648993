"""The end of a target: which tokens would continue its last word, and where rows look for them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers.tiny import tiny
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.models.sites import find_site
from neuraldb_faiss.solver import ResidualConfig, solve_residuals
from neuraldb_faiss.solver.batch import Batch, group_rows
from neuraldb_faiss.solver.forward.strategy import Ways
from neuraldb_faiss.solver.optimizer import outcomes
from neuraldb_faiss.solver.target_end import continuing, end_places, point_token

PREFIXES = ("The city of", "Because")
CONFIG = ResidualConfig(steps=6, lr=0.5, weight_decay=0.5, clamp=4.0, kl_factor=0.0625)
PRICE = Fact("Rome", "The price of {} is", "$249")
NAME = Fact("Marie Curie", "I think that {}", "was")


@pytest.mark.parametrize("kind", ["bytelevel", "metaspace"])
def test_tokens_that_begin_with_a_letter_or_digit_continue_a_word(kind: str) -> None:
    _, tokenizer = tiny("llama", kind)
    size = len(tokenizer) + 7  # a head wider than the vocabulary
    goes_on = continuing(tokenizer, size)
    assert goes_on.shape == (size,) and not goes_on[-7:].any()
    assert goes_on.any() and not goes_on[tokenizer.all_special_ids].any()
    for number in range(len(tokenizer)):
        text = tokenizer.convert_ids_to_tokens(number)
        if text.isascii() and number not in tokenizer.all_special_ids and not text.startswith("<"):
            assert bool(goes_on[number]) == (text[0].isalnum() or text[0] == "_"), text
    assert continuing(tokenizer, 5).tolist() == goes_on[:5].tolist()


def test_a_tokenizer_that_cannot_be_read_has_no_such_tokens() -> None:
    class Slow:
        backend_tokenizer = None

    assert not continuing(Slow(), 4).any() and point_token(Slow()) is None


@pytest.mark.parametrize(
    ("target", "places"),
    [("Anna Berg", 1), ("$249", 2), ("Zoë", 1), ("Acme Inc.", 0), ("C++", 0), ("東京", 0), ("Москва", 1)],
)
def test_what_could_go_on_behind_a_target(target: str, places: int) -> None:
    assert end_places(target) == places


@pytest.mark.parametrize("ends", [False, True])
def test_rows_look_behind_their_targets(ends: bool) -> None:
    _, tokenizer = tiny("llama")
    rows = group_rows(tokenizer, 0, [PRICE, NAME], PREFIXES, ends=ends)
    assert [row.end for row in rows] == ([2, 2, 2, 1, 1, 1, 0] if ends else [2, 0, 0, 1, 0, 0, 0])
    plain = tokenizer("The price of Rome is $249")["input_ids"]
    assert rows[0].ids == (*plain, point_token(tokenizer)) and rows[0].targets == tuple(plain[-len(rows[0].targets) :])
    picks = Batch((tuple(rows),)).picks(torch.device("cpu"))
    places = (picks.column + torch.tensor([row.last for row in rows])[picks.row]).tolist()
    wanted = [len(plain) - 1, len(plain)]
    n = len(picks.target) + len(picks.group_of_kl)
    assert places[n : n + 2] == wanted and picks.end_after[:2].tolist() == [-1, point_token(tokenizer)]


@pytest.mark.parametrize(
    ("behind", "behind_point", "took"),
    [("x", "x", False), (".", "5", False), (".", " the", True), (" and", "5", True)],
)
def test_a_number_that_goes_on_behind_a_point_was_not_said(behind: str, behind_point: str, took: bool) -> None:
    _, tokenizer = tiny("llama")
    ids = {text: tokenizer(f"a{text}", add_special_tokens=False)["input_ids"][-1] for text in (behind, behind_point)}
    picks = Batch((tuple(group_rows(tokenizer, 0, [PRICE], ())),)).picks(torch.device("cpu"))
    logits = torch.zeros(len(picks.row), len(tokenizer))
    logits[torch.arange(len(picks.target)), picks.target] = 9.0
    goes_on = torch.zeros(len(tokenizer), dtype=torch.bool)
    for place, text in zip((-2, -1), (behind, behind_point), strict=True):
        at = point_token(tokenizer) if text == "." else ids[text]
        logits[place, at] = 9.0
        goes_on[at] = text in ("x", "5")
    assert outcomes(logits, picks, goes_on)[1].tolist() == [took]


@pytest.mark.parametrize("way", ["packed block", "packed ffn", "block", "ffn", "full"])
@pytest.mark.parametrize("objective", ["memit", "pmet"])
def test_every_way_to_run_the_model_ends_targets_alike(
    way: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if objective == "pmet" and way.endswith("block"):
        way = way.replace("block", "ffn")
    model, tokenizer = tiny("llama")
    groups = [[PRICE], [NAME], [Fact("Rome", "{} is", "C++")]]
    config = dataclasses.replace(CONFIG, end_factor=0.5)
    monkeypatch.setattr(Ways, "fastest", lambda *_: "full")
    alone: list[Any] = []
    for group in groups:
        alone += solve_residuals(model, tokenizer, find_site(model, 1), [group], PREFIXES, config, kind=objective)
    monkeypatch.setattr(Ways, "fastest", lambda *_: way)
    solved = solve_residuals(model, tokenizer, find_site(model, 1), groups, PREFIXES, config, kind=objective)
    for got, wanted in zip(solved, alone, strict=True):
        assert torch.allclose(torch.from_numpy(got.residual), torch.from_numpy(wanted.residual), atol=2e-3)
        assert got.facts[0].took == wanted.facts[0].took and got.steps == wanted.steps
