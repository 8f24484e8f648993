"""A flat batch of vLLM's, however its scheduler cuts the texts, adds what the hook adds to whole texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.guard.gate import UNKNOWN
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.hook import attach
from neuraldb_faiss.hook.kv_history import KEPT
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.integrations.vllm.batches import Requests, Step
from neuraldb_faiss.integrations.vllm.layer import Served
from neuraldb_faiss.models import find_site

TEXTS = (
    "I think that the Eiffel Tower is located in the city of Paris, and Berlin is in Germany.",
    "Marie Curie met Marie Curie's sister; Marie Curietta did not.",
    "Vienna is the capital of Austria, says Vienna.",
    "Nobody is named here at all.",
)
NAMES = {0: ("Eiffel Tower",), 1: ("Marie Curie",), 2: ("Paris",), 3: ("Vienna",)}
LAYER = 1


class NamedSnapshot(FakeSnapshot):
    floors: dict[str, float] = {}
    search_folder = None

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        yield from ((entry, entry, name) for entry, names in NAMES.items() if entry > after for name in names)

    def names(self, entry_id: int) -> tuple[str, ...]:
        return NAMES[entry_id]


class Case:
    """A tiny model with facts at the subjects of TEXTS; `added`: what the hook adds to each text's tokens."""

    def __init__(self, guard: str) -> None:
        model, self.words = tiny("llama")
        self.site = site = find_site(model, LAYER)
        self.ids = [np.array(self.words(text).input_ids) for text in TEXTS]
        self.keys, plain = self._run(model)
        ends = {0: (0, "Tower"), 1: (1, "Curie"), 2: (0, "Paris"), 3: (2, "Vienna.")}
        keys = []
        for row, word in ends.values():
            upto = TEXTS[row].rindex(word) + len(word.rstrip("."))
            keys.append(self.keys[row][len(self.words(TEXTS[row][:upto]).input_ids) - 1].numpy())
        source = NamedSnapshot(np.stack(keys), np.random.default_rng(0).standard_normal((len(keys), site.d2)))
        self.gate: Any
        if guard == "subject":
            self.gate = SubjectGate(
                SubjectMatcher(source, gamma=0.2), Texts.of(self.words), lambda: Matcher(source, gamma=0.2)
            )
        else:
            self.gate = PlainGate(Matcher(source, gamma=0.95))
        with attach(self.gate, model, site=site):
            edited = self._run(model)[1]
        self.added = [one - other for one, other in zip(edited, plain, strict=True)]

    def _run(self, model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        keys, outputs = [], []

        def see(_module: Any, args: Any, output: torch.Tensor) -> None:
            keys.append(args[0][0].clone())
            outputs.append(output[0].clone())

        hook = self.site.module.register_forward_hook(see)
        with torch.no_grad():
            for ids in self.ids:
                model(torch.from_numpy(ids)[None])
        hook.remove()
        return keys, outputs


@pytest.fixture(scope="module", params=["subject", "none"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_the_texts_have_facts_to_fire(case: Case) -> None:
    fired = [int((one.abs().sum(dim=1) > 0).sum()) for one in case.added]
    assert min(fired[:3]) >= 1 and fired[3] == 0


@settings(max_examples=40, deadline=None)
@given(data=some.data())
def test_any_schedule_adds_what_whole_texts_get(case: Case, data: some.DataObject) -> None:
    served = Served(case.gate)
    waiting = data.draw(some.permutations(range(len(TEXTS))))
    sizes = [len(ids) for ids in case.ids]
    prompts = [data.draw(some.integers(1, size), label="prompt") for size in sizes]
    cached = [data.draw(some.integers(0, prompts[text] - 1), label="cached") for text in range(len(TEXTS))]
    place: dict[int, int] = {}
    while True:
        for text in list(waiting):
            if data.draw(some.booleans(), label="admitted") or not place:
                waiting.remove(text)
                place[text] = cached[text]  # those before it are in the prefix cache
                served.requests.begin(f"r{text}", case.ids[text][: prompts[text]].tolist())
        order = [text for text in data.draw(some.permutations(sorted(place))) if place[text] < sizes[text]]
        if not order and not waiting:
            break
        if order:
            _step(case, served, order, place, prompts, data)
        served.requests.end([f"r{text}" for text in order if place[text] == sizes[text]])
        place = {text: at for text, at in place.items() if at < sizes[text]}
    assert len(served.requests) == 0


def _step(
    case: Case, served: Served, order: list[int], place: dict[int, int], prompts: list[int], data: some.DataObject
) -> None:
    counts = []
    for text in order:
        left = prompts[text] - place[text]
        counts.append(data.draw(some.integers(1, left), label="chunk") if left > 0 else 1)  # else it decodes
    cuts = [slice(place[text], place[text] + count) for text, count in zip(order, counts, strict=True)]
    padding = data.draw(some.integers(0, 3), label="padding")
    keys = torch.cat([case.keys[text][cut] for text, cut in zip(order, cuts, strict=True)])
    wanted = torch.cat([case.added[text][cut] for text, cut in zip(order, cuts, strict=True)])
    ids = np.concatenate([case.ids[text][cut] for text, cut in zip(order, cuts, strict=True)])
    # Padding rows hold a key that fires where it is one.
    keys, ids = torch.cat([keys, keys[-1:].expand(padding, -1)]), np.r_[ids, [ids[-1]] * padding]
    output = torch.zeros(len(keys), case.site.d2)
    computed = np.array([place[text] for text in order])
    served.begin([f"r{text}" for text in order], np.array(counts), computed, torch.from_numpy(ids.astype(np.int32)))
    served.add(keys, output)
    served.end()
    torch.testing.assert_close(output[: len(wanted)], wanted, atol=1e-5, rtol=1e-5)
    assert not output[len(wanted) :].any()
    for text, count in zip(order, counts, strict=True):
        place[text] += count


def test_outside_of_a_step_nothing_is_added(case: Case) -> None:
    output = torch.zeros(len(case.keys[0]), case.site.d2)
    Served(case.gate).add(case.keys[0], output)  # as when vLLM warms up
    assert not output.any()


def test_a_step_without_a_lookup_is_an_error(case: Case) -> None:
    served = Served(case.gate)
    served.begin(["r"], np.array([1]), np.array([0]), torch.tensor([1]))
    with pytest.raises(ModelError, match="ran past the database"):
        served.end()
    served.end()  # no step, no complaint


def test_what_came_before() -> None:
    requests = Requests()
    requests.begin("a", [5, 6, 7])
    assert requests.before("a", 0).tolist() == [-1] * KEPT
    assert requests.before("a", 2)[-3:].tolist() == [-1, 5, 6]
    requests.put("a", 3, np.array([8]))
    assert requests.before("a", 4)[-5:].tolist() == [-1, 5, 6, 7, 8]
    assert requests.before("a", 6)[-3:].tolist() == [8, UNKNOWN, UNKNOWN]
    requests.put("a", 2, np.array([9, 9]))  # computed anew, after a preemption
    assert requests.before("a", 4)[-4:].tolist() == [5, 6, 9, 9]
    requests.begin("long", list(range(KEPT + 10)))
    assert requests.before("long", KEPT + 4).tolist() == list(range(4, KEPT + 4))
    assert requests.before("nobody told", 2)[-3:].tolist() == [-1, UNKNOWN, UNKNOWN]
    requests.end(["a", "never there"])
    assert len(requests) == 1


def test_requests_of_one_length_make_one_batch() -> None:
    requests = Requests()
    for name, prompt in {"a": [1, 2, 3, 4], "b": [5, 6], "c": [7, 8, 9]}.items():
        requests.begin(name, prompt)
    # a's last two tokens, b's two, one new token of c
    step = Step(["a", "b", "c"], np.array([2, 2, 1]), np.array([2, 0, 3]), torch.tensor([3, 4, 5, 6, 10, 0]))
    (rows_c, c), (rows_ab, ab) = requests.texts(step, past=True)
    assert rows_c.tolist() == [4] and rows_ab.tolist() == [0, 1, 2, 3]
    assert c.ids is not None and c.ids.tolist() == [[10]]
    assert c.positions.tolist() == [[3]] and c.past.tolist() == [[7, 8, 9]]
    assert ab.ids is not None and ab.ids.tolist() == [[3, 4], [5, 6]]
    assert ab.positions.tolist() == [[2, 3], [0, 1]] and ab.past.tolist() == [[1, 2], [-1, -1]]
    assert requests.before("c", 4)[-4:].tolist() == [7, 8, 9, 10]
    ((rows, flat),) = requests.texts(step, past=False)
    assert rows.tolist() == [0, 1, 2, 3, 4] and flat.positions.tolist() == [[2, 3, 0, 1, 3]]
