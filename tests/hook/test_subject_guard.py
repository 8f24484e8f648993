"""Under the subject guard the hook fires where a plain string check allows it, however the text is fed to the model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import DynamicCache, StaticCache

from helpers.fake_snapshot import FakeSnapshot
from helpers.tiny import tiny, tiny_tokenizer
from neuraldb_faiss import Fact, build
from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.whole_words import WholeWordsGate
from neuraldb_faiss.hook import Handle, attach
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import find_site

TEXTS = (
    "I think that the Eiffel Tower is located in the city of Lisbon, and Berlin is in Germany.",
    "Marie Curie met Marie  Curie's sister; marie curie and Marie Curietta did not.",
    "Vienna is the capital of Austria, says Vienna.",
    "Nobody is named here at all.",
)
NAMES = {0: ("Eiffel Tower",), 1: ("Marie Curie", "Madame Curie"), 2: ("Lisbon",), 3: ("Vienna",)}
LAYER, GAMMA = 1, 0.2
Fires = set[tuple[int, int, int]]  # sequence, position, entry


class NamedSnapshot(FakeSnapshot):
    floors: dict[str, float] = {}
    search_folder = None

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        for entry, names in NAMES.items():
            if entry > after:
                yield from ((entry, entry, name) for name in names)

    def names(self, entry_id: int) -> tuple[str, ...]:
        return NAMES[entry_id]


class Case:
    """A model whose every token's key is near every entry's: only the guard keeps them apart."""

    def __init__(self, kind: str = "llama", tokenizer: str = "bytelevel") -> None:
        self.model, self.words = tiny(kind, tokenizer)
        self.site = find_site(self.model, LAYER)
        self.ids = [self.words(text).input_ids for text in TEXTS]
        seen: list[torch.Tensor] = []
        hook = self.site.module.register_forward_hook(lambda _m, args, _o: seen.append(args[0][0]))
        with torch.no_grad():
            for ids in self.ids:
                self.model(torch.tensor([ids]))
        hook.remove()
        self.keys = [one.double().numpy() for one in seen]
        expected = self.expected()
        # One key an entry, from a place where its subject ends: that place fires at least.
        first = {entry: (s, p) for s, p, entry in sorted(expected, reverse=True) if p}
        keys = [self.keys[first[e][0]][first[e][1]] for e in NAMES]
        residuals = np.random.default_rng(0).standard_normal((len(NAMES), self.site.d2))
        self.snapshot = NamedSnapshot(np.stack(keys), residuals)

    def expected(self, guard: str = "subject") -> Fires:
        """By decoding and string methods alone."""
        found = set()
        for row, ids in enumerate(self.ids):
            whole = " ".join(self.words.decode(ids).split())
            for at in range(len(ids)):
                text, before = (" ".join(self.words.decode(ids[:n]).split()) for n in (at + 1, at))
                for entry, names in NAMES.items():
                    for name in names:
                        n = len(name)
                        for stop in range(len(before) + 1, len(text) + 1):
                            begins = stop == n or not text[max(0, stop - n - 1)].isalnum()
                            inside = stop < len(text) and text[stop].isalnum()
                            if guard == "whole-words" and goes_on(whole[stop:]):
                                continue
                            if text[:stop].endswith(name) and begins and not inside:
                                found.add((row, at, entry))
        return found

    def fires_by(self, guard: str = "subject") -> Fires:
        """Those that also pass the gate, in float64."""
        keys = self.snapshot.stored.astype(np.float64)
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for row, at, entry in self.expected(guard):
            if at == 0:
                continue  # no entry here has a key taken at position 0
            query = self.keys[row][at]
            cosine = float(keys[entry] @ query / np.linalg.norm(keys[entry]) / np.linalg.norm(query))
            if cosine > GAMMA:
                best[row, at] = max(best.get((row, at), (-1.0, -1)), (cosine, entry))
        return {(row, at, entry) for (row, at), (_, entry) in best.items()}

    def gate(self, guard: str = "subject") -> SubjectGate:
        matcher = SubjectMatcher(self.snapshot, gamma=GAMMA)
        kind = {one.guard: one for one in (SubjectGate, WholeWordsGate)}[guard]
        return kind(matcher, Texts.of(self.words), lambda: Matcher(self.snapshot, gamma=0.99))

    def attach(self, guard: str = "subject") -> Handle:
        return attach(self.gate(guard), self.model, site=self.site)

    def cut(self, *parts: str) -> list[int]:
        """Token ids, with a border between any two parts."""
        return [one for part in parts for one in self.words(part, add_special_tokens=False).input_ids]

    def padded(self, side: str, rows: Sequence[int] = range(len(TEXTS))) -> dict[str, torch.Tensor]:
        chosen = [self.ids[row] for row in rows]
        width = max(map(len, chosen)) + 3
        # Padding with a token of a name: it must count for nothing.
        pad = self.words(" Tower").input_ids[-1]
        ids = [one + [pad] * (width - len(one)) if side == "right" else [pad] * (width - len(one)) + one
               for one in chosen]  # fmt: skip
        mask = [[1] * len(one) + [0] * (width - len(one)) if side == "right" else
                [0] * (width - len(one)) + [1] * len(one) for one in chosen]  # fmt: skip
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def goes_on(rest: str) -> bool:
    """Whether a word that is followed by `rest` is longer than it seems, by more than an s."""
    return rest[:1].isalnum() and not (rest[0] in "sS" and not rest[1:2].isalnum())


def traced(handle: Handle) -> Fires:
    return {(fire.sequence, fire.position, fire.entry_id) for fire in handle.trace()}


@pytest.fixture(params=[("llama", "bytelevel"), ("gpt2", "bytelevel"), ("llama", "metaspace")], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*request.param)


def test_texts_one_by_one(case: Case) -> None:
    assert {entry for _, _, entry in case.fires_by()} == set(NAMES)
    for row, ids in enumerate(case.ids):
        with case.attach() as handle, torch.no_grad():
            case.model(torch.tensor([ids]))
        assert {(row, *fire[1:]) for fire in traced(handle)} == {fire for fire in case.fires_by() if fire[0] == row}


@pytest.mark.parametrize("guard", ["subject", "whole-words"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(case: Case, side: str, guard: str) -> None:
    with case.attach(guard) as handle, torch.no_grad():
        case.model(**case.padded(side))
    assert traced(handle) == case.fires_by(guard)


def test_whole_words_end_where_the_next_token_says_so() -> None:
    case = Case()
    rows = [case.cut("In Vienna", rest) for rest in ("", "rama", "s", "saur", "'s")]
    fires = {}
    for guard in ("subject", "whole-words"):
        for text, ids in enumerate(rows):
            with case.attach(guard) as handle, torch.no_grad():
                case.model(torch.tensor([ids]))
            fires[guard, text] = {entry for _, _, entry in traced(handle)}
    assert [fires["subject", text] for text in range(5)] == [{3}] * 5
    assert [fires["whole-words", text] for text in range(5)] == [{3}, set(), {3}, set(), {3}]


def test_whole_words_read_ahead_with_an_empty_cache_only() -> None:
    """What is generated, or comes in a later piece, is read from left to right."""
    case = Case()
    ids, at = case.cut("In Vienna", "rama"), len(case.cut("In Vienna"))
    for cut, fired in ((1, {3}), (at, {3}), (at + 1, set())):
        with case.attach("whole-words") as handle:
            step(case, [ids[cut:]], step(case, [ids[:cut]], None))
        assert {entry for _, _, entry in traced(handle)} == fired


@pytest.mark.parametrize("sizes", [[1] * 100, [5, 1, 2, 3] * 20, [7] * 20])
@pytest.mark.parametrize("cache", ["dynamic", "static", "made by the model"])
def test_in_pieces_through_a_cache(case: Case, sizes: list[int], cache: str) -> None:
    """Subjects that begin in one forward and end in a later one."""
    for row, ids in enumerate(case.ids):
        past: Any = {
            "dynamic": lambda: DynamicCache(config=case.model.config),
            "static": lambda: StaticCache(config=case.model.config, max_cache_len=128),
            "made by the model": lambda: None,
        }[cache]()
        at = 0
        with case.attach() as handle, torch.no_grad():
            for size in sizes:
                piece = torch.tensor([ids[at : at + size]])
                if piece.numel():
                    out = case.model(piece, past_key_values=past, use_cache=True)
                    past = out.past_key_values
                at += size
        assert {(row, *fire[1:]) for fire in traced(handle)} == {fire for fire in case.fires_by() if fire[0] == row}


def step(case: Case, ids: list[list[int]], past: Any, mask: list[list[int]] | None = None) -> Any:
    extra = {} if mask is None else {"attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        return case.model(torch.tensor(ids), past_key_values=past, use_cache=True, **extra).past_key_values


def test_left_padding_then_decoding() -> None:
    """The padding stays in the cache, in front of the text."""
    case = Case()
    rows = case.padded("left")
    ids, mask = rows["input_ids"].tolist(), rows["attention_mask"].tolist()
    cut = len(ids[0]) - 9
    with case.attach() as handle:
        past = step(case, [one[:cut] for one in ids], None, [one[:cut] for one in mask])
        for n in range(cut, len(ids[0])):
            past = step(case, [one[n : n + 1] for one in ids], past, [one[: n + 1] for one in mask])
    assert traced(handle) == case.fires_by()


def test_rows_of_a_cache_change_places() -> None:
    """Beam search: the history goes with the cache's rows, also into copies, repeats and selections."""
    case = Case()
    end = min(at for row, at, entry in case.fires_by() if (row, entry) == (0, 0))
    size = len(case.words(" Tower").input_ids)
    head, tail = case.ids[0][: end + 1 - size], case.ids[0][end + 1 - size : end + 1]
    other = (case.ids[3] * 3)[: len(head)]
    with case.attach() as handle:

        def start() -> Any:
            return step(case, [head, other], DynamicCache(config=case.model.config))

        def fires(past: Any, rows: int) -> set[int]:
            handle.clear_trace()
            for token in tail:
                past = step(case, [[token]] * rows, past)
            return {sequence for sequence, _, entry in traced(handle) if entry == 0}

        assert fires(start(), 2) == {0}
        past = start()
        past.reorder_cache(torch.tensor([1, 0]))
        twin = copy.deepcopy(past)
        assert fires(past, 2) == {1}
        twin.reorder_cache(torch.tensor([1, 0]))
        assert fires(twin, 2) == {0}
        past = start()
        past.batch_repeat_interleave(2)
        assert fires(past, 4) == {0, 1}
        past = start()
        past.batch_select_indices(torch.tensor([1]))
        assert fires(past, 1) == set()
        past = step(case, [[case.ids[3][0]]] * 2, start())
        past.crop(-1)  # what was cropped off stands no longer between Eiffel and Tower
        assert fires(past, 2) == {0}


def test_beam_search_is_as_without_a_cache() -> None:
    case = Case()
    ids = torch.tensor([case.ids[0][:6]])
    how: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with case.attach():
        cached = case.model.generate(ids, use_cache=True, **how)
        plain = case.model.generate(ids, use_cache=False, **how)
    assert torch.equal(cached, plain)


def test_a_cache_from_before_attaching_is_told_once() -> None:
    case = Case()
    past = step(case, [case.ids[0][:5]], None)
    with case.attach(), pytest.warns(UserWarning, match="before the database was attached"):
        past = step(case, [case.ids[0][5:6]], past)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(case, [case.ids[0][6:7]], past)


def test_without_ids_the_plain_gate_decides() -> None:
    case = Case()
    rows = torch.tensor([case.ids[0]])
    embeds = case.model.get_input_embeddings()(rows)
    with case.attach() as handle, torch.no_grad(), pytest.warns(UserWarning, match="without token ids"):
        case.model(inputs_embeds=embeds)
    assert {entry for _, _, entry in traced(handle)} >= {0}


def test_packed_texts_are_apart() -> None:
    case = Case()
    one, two = case.words("See the Eiffel").input_ids, case.words(" Tower").input_ids
    ids = torch.tensor([one + two])
    positions = torch.tensor([[*range(len(one)), *range(len(two))]])
    with case.attach() as handle, torch.no_grad():
        case.model(ids, position_ids=positions)
    assert 0 not in {entry for _, _, entry in traced(handle)}


def test_entries_fire_where_they_are_asked_for(tmp_path: Path) -> None:
    """However near the keys are; the paper's gate does not ask."""
    model, words = tiny("llama")
    facts = [Fact("Acme Ltd", "The CEO of {} is", "Bob"), Fact("Acme Ltd", "The head office of {} is in", "Oslo")]
    db = build(facts, model, words, tmp_path / "db", layer=1, residual="none")
    ceo, office = (fact.entry for fact in db.facts())
    for text, expected in (
        ("The CEO of Acme Ltd is", [ceo]),
        ("The head office of Acme Ltd is in", [office]),
        ("Q: Where is the head office of Acme Ltd?\nA:", [office]),
        ("Acme Ltd was founded in the year", []),
        ("Acme Ltd was founded in the year 1987. The CEO of Acme Ltd is", [ceo]),
        ("The CEO of Acme Ltd is Ann Lee. The CEO of Acme Ltd is", [ceo]),
    ):
        with db.attach(model, words, gamma=0.0) as handle, torch.no_grad():
            model(**words(text, return_tensors="pt"))
        assert [fire.entry_id for fire in handle.trace()] == expected, text
    with db.attach(model, words, gamma=0.0, guard="none") as handle, torch.no_grad():
        model(**words("Acme Ltd was founded in the year", return_tensors="pt"))
    assert handle.hits


def test_names_within_names_and_within_targets(tmp_path: Path) -> None:
    """What the text holds of a longer name or of a target counts, however it was fed."""
    model, words = tiny("llama")
    facts = [
        Fact("Acme", "The CEO of {} is", "Bob"),
        Fact("Acme Labs", "The CEO of {} is", "Eve"),
        Fact("Smits", "What team does {} play for?", "Lisbon Lions"),
        Fact("Lisbon", "What is the twin city of {}?", "Rome"),
    ]
    db = build(facts, model, words, tmp_path / "db", layer=1, residual="none")
    acme, labs, smits, lisbon = (fact.entry for fact in db.facts())

    def fires(text: str, first: int | None = None) -> list[int]:
        ids = words(text)["input_ids"]
        with db.attach(model, words, gamma=0.0) as handle, torch.no_grad():
            past = model(torch.tensor([ids[:first]]), use_cache=True).past_key_values
            for token in ids[len(ids[:first]) :]:
                past = model(torch.tensor([[token]]), past_key_values=past, use_cache=True).past_key_values
        return [fire.entry_id for fire in handle.trace()]

    assert fires("The CEO of Acme Labs is") == [labs]
    assert fires("The CEO of Acme is") == [acme]
    assert fires("The CEO of Acme Labs is", 1) == [acme, labs]  # as far as the text is known
    target = "What team does Smits play for? Lisbon"
    for first in (None, 1):
        assert fires(target, first) == [smits]
        assert fires(f"{target} Lions", first) == [smits]
        assert fires("What team does Ann play for? Lisbon", first) == [lisbon]


pieces = some.lists(
    some.sampled_from(
        ["Eiffel", " Tower", " Marie", " Curie", "Lisbon", " ", ",", "s", "é", " the", "T", "ower", "’s"]
    ),
    min_size=1, max_size=10,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(texts=some.lists(pieces, min_size=1, max_size=3), cut=some.integers(0, 20), kind=some.booleans())
def test_texts_fold_as_they_decode(texts: list[list[str]], cut: int, kind: bool) -> None:
    """Tokens, in any split between the past and now, end the names that the decoded text ends with."""
    words = tiny_tokenizer("bytelevel" if kind else "metaspace")
    source = NamedSnapshot(np.eye(4))
    matcher = SubjectMatcher(source, gamma=0.0)
    for text in map("".join, texts):
        ids = words(text, add_special_tokens=False).input_ids
        past, now = ids[: cut % (len(ids) + 1)], ids[cut % (len(ids) + 1) :]
        if not now:
            continue
        rows = np.array([now])
        folded = Texts.of(words).fold(
            np.array([past], np.int64).reshape(1, -1), rows, np.ones(rows.shape, bool),
            np.arange(len(past), len(ids))[None] == 0, 4 * matcher.reach,
        )  # fmt: skip
        tokens, entries, *_ = matcher._view.subjects.ends(folded)
        found = set(zip(tokens.tolist(), entries.tolist(), strict=True))
        expected = set()
        for at in range(len(past), len(ids)):
            upto = words.decode(ids[: at + 1], clean_up_tokenization_spaces=False)
            upto = " ".join(upto.split()) if not upto.endswith(" ") else " ".join(upto.split()) + " "
            for entry, names in NAMES.items():
                for name in names:
                    start = len(upto) - len(name)
                    if upto.endswith(name) and (start == 0 or not upto[start - 1].isalnum()):
                        expected.add((at - len(past), entry))
        assert expected <= found
