"""The server's parts by themselves: settings, text, sampling, the rows of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.tiny import tiny_tokenizer
from neuraldb_faiss.errors import ServeError
from neuraldb_faiss.guard.gate import Fired
from neuraldb_faiss.guard.gate import Tokens as Texts
from neuraldb_faiss.serving.detokenizer import Stops, Words
from neuraldb_faiss.serving.row_gate import RowGate
from neuraldb_faiss.serving.sampling import RowSampler, Sampler, Sampling
from neuraldb_faiss.serving.server import bind
from neuraldb_faiss.serving.settings import named_databases, read_tokens

# ---- settings


def test_databases_are_named_by_hand_or_by_their_folders() -> None:
    found = named_databases(["legal=/x/one", "/x/two", "base=/x/three=3"])
    assert found == {"legal": Path("/x/one"), "two": Path("/x/two"), "base": Path("/x/three=3")}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a=/x/1", "a=/x/2"], "two databases"),
        (["a=/x/1", "b=/x/1"], "same folder"),
        (["none=/x/1"], "stands for the model"),
        (["a b=/x/1"], "cannot name"),
        (["a+b=/x/1"], "cannot name"),
        ([], "no database"),
    ],
)
def test_bad_names_are_refused(given: list[str], told: str) -> None:
    with pytest.raises(ServeError, match=told):
        named_databases(given)


def test_tokens_are_for_all_or_for_one() -> None:
    tokens = read_tokens(["c29tZQ==", "legal=abc=", "base=x.y"], ["legal", "base"])
    assert (tokens.common, tokens.own) == ("c29tZQ==", {"legal": "abc=", "base": "x.y"})
    assert read_tokens([], ["legal"]) == read_tokens([], [])


def test_tokens_may_say_who_has_them() -> None:
    tokens = read_tokens(["c", "anna@legal=x1", "ben@legal=x2", "carl@=x3"], ["legal", "base"])
    assert [(one.name, one.value) for one in tokens.to_use("legal")] == [("anna", "x1"), ("ben", "x2")]
    assert tokens.to_change("legal") == tokens.to_use("legal") and tokens.to_use("base") == []
    assert [(one.name, one.value) for one in tokens.to_change("base")] == [("common", "c"), ("carl", "x3")]
    assert [one.name for one in read_tokens(["legal=x"], ["legal"]).to_change("legal")] == ["legal"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["legla=x"], "legla"), (["a", "b"], "two tokens"), (["legal=a", "legal=b"], "for legal"), (["a b"], "letters"),
        (["anna@legla=x"], "legla"), (["anna@legal=a", "anna@legal=b"], "anna at legal"), (["@legal=a"], "WHO@"),
    ],
)  # fmt: skip
def test_bad_tokens_are_refused(given: list[str], told: str) -> None:
    with pytest.raises(ServeError, match=told) as refused:
        read_tokens(given, ["legal"])
    assert "x" not in str(refused.value).split() and "a b" not in str(refused.value)  # a token is not repeated


def test_a_port_that_is_taken_is_named() -> None:
    with bind("127.0.0.1", 0) as one:
        one.listen()
        with pytest.raises(ServeError, match=f"port {one.getsockname()[1]}"):
            bind("127.0.0.1", one.getsockname()[1])


# ---- text

_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize("kind", ["bytelevel", "metaspace"])
@settings(max_examples=50)
@given(text=_TEXTS)
def test_the_pieces_of_a_text_are_the_text(kind: str, text: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    words = Words(tokenizer)
    pieces = [words.push(token) for token in ids]
    assert "\ufffd" in text or "\ufffd" not in "".join(pieces)  # characters come whole
    assert "".join(pieces) + words.rest() == tokenizer.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(1, 399), max_size=30))
def test_the_pieces_of_any_tokens_are_their_text(ids: list[int]) -> None:
    tokenizer = tiny_tokenizer("bytelevel")
    words = Words(tokenizer)
    said = "".join([words.push(token) for token in ids]) + words.rest()
    assert said == tokenizer.decode(ids, skip_special_tokens=True)


def test_an_answer_behind_a_prompt_keeps_its_space() -> None:
    tokenizer = tiny_tokenizer("metaspace")
    prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("The city of", "Rome"))
    behind, alone = Words(tokenizer, prompt), Words(tokenizer)
    assert "".join([behind.push(token) for token in answer]) == " Rome"
    assert "".join([alone.push(token) for token in answer]) == "Rome"


@given(
    text=st.text("ab.", max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=8),
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_its_first_stop_string(text: str, cuts: list[int], stops: list[str]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    watch, said = Stops(stops), ""
    for start, end in zip([0, *ends], ends, strict=False):
        said += watch.push(text[start:end])
        if watch.met:
            break
    said += watch.rest()
    places = [text.find(stop) for stop in stops if stop in text]
    if not places:
        assert said == text and not watch.met
    else:  # one that is whole ends it, even where a longer one had begun earlier
        assert watch.met and not any(stop in said for stop in stops) and text.startswith(said)
        assert min(places) <= len(said) + max(map(len, stops))


# ---- sampling


CPU = torch.device("cpu")


def drawing(*rules: Sampling) -> RowSampler:
    return RowSampler([Sampler(rule, None, CPU) for rule in rules], [1] * len(rules))


def test_rows_are_drawn_by_their_own_rules() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0]]).repeat(4, 1)
    rules = [Sampling(), Sampling(1.0, seed=5), Sampling(1.0, top_p=0.5, seed=6), Sampling(1.0, seed=5)]
    together, alone = drawing(*rules), drawing(rules[1])
    drawn = set()
    for _ in range(50):
        found = together(torch.zeros(4, 1, dtype=torch.long), scores.clone()).argmax(1).tolist()
        single = int(alone(torch.zeros(1, 1, dtype=torch.long), scores[:1].clone()).argmax())
        assert found[0] == 0 and found[2] == 0  # greedy; and the likeliest has more than half of the mass
        assert found[1] == found[3] == single  # one seed, whatever the row and the batch
        drawn.add(found[1])
    assert drawn == {0, 1, 2}


def test_draws_are_as_likely_as_the_model_says() -> None:
    chances = torch.tensor([[0.6, 0.3, 0.1]])
    sampler, counts = drawing(Sampling(2.0, seed=1)), torch.zeros(3)
    for _ in range(4000):
        counts[int(sampler(torch.zeros(1, 1, dtype=torch.long), 2 * chances.log()).argmax())] += 1
    assert torch.allclose(counts / 4000, chances[0], atol=0.03)


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [(Sampling(1.5, top_k=1), {3}), (Sampling(1.5, top_k=2), {2, 3}), (Sampling(1.5, min_p=0.6), {2, 3}),
     (Sampling(1.5, top_p=0.6), {2, 3}), (Sampling(1.5), {0, 1, 2, 3}), (Sampling(0.0, repetition_penalty=1.5), {2})],
    ids=str,
)  # fmt: skip
def test_each_rule_leaves_what_it_allows(rule: Sampling, allowed: set[int]) -> None:
    scores = torch.tensor([[1.0, 1.0, 1.8, 2.0]])
    sampler = drawing(rule)
    drawn = {int(sampler(torch.tensor([[3, 3]]), scores.clone()).argmax()) for _ in range(200)}
    assert drawn == allowed


def test_a_penalty_counts_no_padding() -> None:
    samplers = [Sampler(Sampling(repetition_penalty=2.0), None, CPU) for _ in range(2)]
    chosen = RowSampler(samplers, [1, 3])(torch.tensor([[0, 0, 2], [0, 0, 2]]), torch.tensor([[3.0, 2.0, 1.0]] * 2))
    assert chosen.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-45, 1e-38, 1e-30, 1e-10, 9e-6])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    scores = torch.tensor([[300.0, 300.001, -1e30, 299.0]])
    assert int(drawing(Sampling(temperature))(torch.zeros(1, 1, dtype=torch.long), scores).argmax()) == 1


@pytest.mark.parametrize("temperature", [1e-5, 1e-4, 2.0])
def test_no_logits_overflow(temperature: float) -> None:
    for scores in ([3e38, -3e38, 0.0], [float("-inf"), 5.0, -1e5]):
        sampler = drawing(Sampling(temperature))
        found = sampler(torch.zeros(1, 1, dtype=torch.long), torch.tensor([scores]))
        assert int(found.argmax()) == int(torch.tensor(scores).argmax()) and bool(sampler.finite.all())


@pytest.mark.parametrize("rule", [Sampling(), Sampling(1.0, top_p=0.5, top_k=2, min_p=0.1), Sampling(0.0, seed=1)])
@pytest.mark.parametrize("bad", [[float("nan"), 1.0, 2.0], [float("inf"), 1.0, 2.0], [float("-inf")] * 3])
def test_rows_without_finite_logits_are_named_and_end_no_batch(rule: Sampling, bad: list[float]) -> None:
    sampler = drawing(rule, Sampling(1.0, top_k=1))
    found = sampler(torch.zeros(2, 1, dtype=torch.long), torch.tensor([bad, [1.0, 2.0, 1.0]]))
    assert sampler.finite.tolist() == [False, True] and int(found[1].argmax()) == 1


def test_probabilities_are_the_models_own() -> None:
    scores = torch.tensor([[2.0, 1.0, float("-inf"), 0.0]])
    sampler = Sampler(Sampling(2.0, top_k=1, repetition_penalty=9.0), 3, CPU)
    assert int(sampler(torch.tensor([[0]]), scores)) == 1
    expected = scores.log_softmax(-1)[0]
    assert sampler.logprob == pytest.approx(float(expected[1]))
    assert [token for token, _ in sampler.likeliest] == [0, 1, 3]
    assert [chance for _, chance in sampler.likeliest] == pytest.approx(expected[[0, 1, 3]].tolist())
    sampler = Sampler(Sampling(), 4, CPU)
    sampler(torch.tensor([[0]]), scores)
    assert sampler.likeliest[-1] == (2, -9999.0)  # JSON has no infinity


# ---- rows


@dataclass(frozen=True)
class Near:
    """What a gate on a GPU says may fire: rows of keys, and which."""

    rows: np.ndarray
    positions: np.ndarray


class Asked:
    """A gate that fires at every second token it is shown, and keeps what it was shown."""

    guard, wants_past, gamma = "none", True, 0.5
    source: Any = SimpleNamespace()
    keys: torch.Tensor
    tokens: Texts

    def fired(self, keys: torch.Tensor, tokens: Texts) -> Fired:
        self.keys, self.tokens = keys, tokens
        places = np.arange(0, len(keys), 2)
        return Fired(places, places + 100, np.ones(len(places), np.float32), self.source)

    def candidates(self, keys: torch.Tensor, tokens: Any) -> Any:
        self.keys, self.tokens = keys, tokens()
        return Near(np.array([0, 3, 3]), np.array([7, 8, 9]))

    def refresh(self, source: Any) -> None:
        self.source = source


def texts(batch: int, width: int) -> Texts:
    grid = np.arange(batch * width).reshape(batch, width)
    return Texts(grid % width, grid % 2 == 0, grid, True, grid * 10)


def test_a_gate_is_shown_its_own_rows_only() -> None:
    inner = Asked()
    gate = RowGate(inner)
    keys = torch.arange(4 * 3).float().reshape(12, 1)
    gate.answer([1, 3], 4)
    found = gate.fired(keys, texts(4, 3))
    assert inner.keys.reshape(-1).tolist() == [3, 4, 5, 9, 10, 11]
    assert inner.tokens.ids is not None and inner.tokens.ids.tolist() == [[3, 4, 5], [9, 10, 11]]
    assert inner.tokens.past.tolist() == [[30, 40, 50], [90, 100, 110]]
    assert found.places.tolist() == [3, 5, 10]  # tokens 0, 2 and 4 of what was shown
    assert found.entries.tolist() == [100, 102, 104]


def test_candidates_on_a_gpu_are_of_our_rows_too() -> None:
    inner = Asked()
    gate = RowGate(inner)
    keys = torch.arange(4 * 3).float().reshape(12, 1)
    assert gate.candidates(keys, lambda: texts(4, 3)) is None and not hasattr(inner, "keys")
    gate.answer([0, 2], 4)
    found = gate.candidates(keys, lambda: texts(4, 3))
    assert inner.keys.reshape(-1).tolist() == [0, 1, 2, 6, 7, 8] and inner.tokens.past[:, 0].tolist() == [0, 60]
    assert found.rows.tolist() == [0, 6, 6] and found.positions.tolist() == [7, 8, 9]


def test_a_gate_without_rows_is_not_asked() -> None:
    inner = Asked()
    gate = RowGate(inner)
    assert not len(gate.fired(torch.zeros(12, 1), texts(4, 3)).places) and not hasattr(inner, "keys")
    gate.answer([0, 1], 2)
    assert gate.fired(torch.zeros(6, 1), texts(2, 3)).places.tolist() == [0, 2, 4]
    gate.answer((), 0)
    assert not len(gate.fired(torch.zeros(6, 1), texts(2, 3)).places)
