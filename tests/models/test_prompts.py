"""The subject's last token and the target's first are right for each kind of tokenizer."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from helpers.tiny import TOKENIZERS, tiny_tokenizer
from neuraldb_faiss.errors import FactError, ModelError
from neuraldb_faiss.models.tokenization import (
    appended_tokens,
    encode,
    encode_all,
    encode_pairs,
    encode_prompt,
    encode_prompts,
    encode_target,
    encode_targets,
    key_id,
    key_ids,
)

TEMPLATES = ("$A", "<s> $A", "$A </s>", "<s> $A </s>", "<s> $A <unk> </s>")  # BOS, EOS, both, two behind


def templated(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts special tokens around every text, as some do by default."""
    tokenizer = copy.deepcopy(tiny_tokenizer("metaspace"))
    special = [("<unk>", 0), ("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


@cache
def merging(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that makes one token of a prompt's end and a target's beginning."""
    pieces = [text[-1] + target[:1] for text, _, target in SPACELESS]
    tokenizer = copy.deepcopy(tiny_tokenizer(kind))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    trained = Tokenizer(BPE(unk_token="<unk>"))
    if kind == "bytelevel":
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False)
    trained.train_from_iterator([piece for piece in pieces for _ in range(9)], trainer)
    learnt, vocab = json.loads(trained.to_str())["model"], backend["model"]["vocab"]
    for piece in learnt["vocab"]:
        vocab.setdefault(piece, len(vocab))
    backend["model"]["merges"] = learnt["merges"] + backend["model"]["merges"]
    core = Tokenizer.from_str(json.dumps(backend))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=tokenizer.bos_token)


def _span(text: str, subject: str) -> tuple[int, int]:
    start = text.index(subject)
    return start, start + len(subject)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


CASES = [
    ("The Eiffel Tower is located in the city of", "Eiffel Tower"),
    ("Rome is the capital of", "Rome"),
    ("The capital of Italy is Rome", "Rome"),
    ("I think (Marie Curie) was born in", "Marie Curie"),
    ("The mayor of Zürich", "Zürich"),
    ("東京 is in", "東京"),
    ("You know Windows 95, and", "Windows 95"),
    ("The sign of 🍕 is", "🍕"),
    ("LeBron James's sport is", "LeBron James"),
]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("text", "subject"), CASES)
def test_the_last_token_ends_the_subject(kind: str, text: str, subject: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    start, end = _span(text, subject)
    row = encode(tokenizer, text, (start, end))
    assert row.ids == tuple(tokenizer(text)["input_ids"])
    assert _decode(tokenizer, row.ids[: row.last + 1]).strip() == text[:end].strip()
    assert not _decode(tokenizer, row.ids[: row.last]).endswith(subject)


def test_bos_is_kept_and_counted() -> None:
    plain, llama = tiny_tokenizer("bytelevel"), tiny_tokenizer("metaspace")
    assert encode(plain, "Rome is", (0, 4)).ids[0] != plain.bos_token_id
    assert encode(llama, "Rome is", (0, 4)).ids[0] == llama.bos_token_id
    assert encode(llama, "Rome is", (0, 4)).last >= 1


def test_a_one_token_subject_at_position_0() -> None:
    tokenizer = tiny_tokenizer("bytelevel")
    row = encode(tokenizer, "The city", (0, 3))
    assert (row.last, row.ids[0]) == (0, tokenizer.convert_tokens_to_ids("The"))


@pytest.mark.parametrize("template", TEMPLATES)
def test_what_stands_behind_a_text_is_left_out_and_what_stands_before_it_kept(template: str) -> None:
    tokenizer, plain = templated(template), templated("$A")
    text, span = "Rome is the capital of", (0, 4)
    before = tokenizer("", add_special_tokens=True)["input_ids"][: template.split().index("$A")]
    bare = plain(text)["input_ids"]
    assert encode_prompt(tokenizer, text) == before + bare
    assert encode_prompts(tokenizer, [text, "Rome"]) == [before + bare, before + plain("Rome")["input_ids"]]
    assert list(encode(tokenizer, text, span).ids) == before + bare
    row = encode_target(tokenizer, text, span, "Italy")
    assert list(row.ids) == before + plain(f"{text} Italy")["input_ids"]
    assert encode_pairs(tokenizer, [text], ["Italy"]) == [(row.ids, row.target_start)]
    assert encode_prompt(tokenizer, text, special=False) == bare
    assert appended_tokens(tokenizer) == tokenizer("")["input_ids"][len(before) :]


def test_a_special_token_that_the_user_wrote_is_the_prompts() -> None:
    tokenizer = templated("<s> $A </s>")
    assert encode_prompt(tokenizer, "Rome is</s>")[-2:] == [encode_prompt(tokenizer, "Rome is")[-1], 2]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_slow_tokenizer_continues_as_a_fast_one(template: str) -> None:
    fast = templated(template)

    class Slow:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": fast(text, add_special_tokens=add_special_tokens)["input_ids"]}

    for text in ("Rome is", "", "is is"):
        assert encode_prompt(Slow(), text) == encode_prompt(fast, text)


def test_half_of_a_surrogate_pair_is_told() -> None:
    with pytest.raises(FactError, match=r"'Rome \\ud800' holds half of a surrogate pair"):
        encode_prompt(tiny_tokenizer(), "Rome \ud800")


SPACELESS = [("日本的首都是", "日本", "伦敦"), ("東京タワーは", "東京タワー", "パリにある"),
             ("เมืองหลวงของญี่ปุ่นคือ", "ญี่ปุ่น", "ลอนดอน"),
             ('The city is called "', "The city", "Rome"), ("The city (", "The city", "Rome")]  # fmt: skip


@pytest.mark.parametrize("kind", [*TOKENIZERS, "merging bytelevel", "merging metaspace"])
@pytest.mark.parametrize(("text", "subject", "target"), SPACELESS)
def test_the_target_follows_without_a_space_where_the_script_has_none(
    kind: str, text: str, subject: str, target: str
) -> None:
    tokenizer = merging(kind.split()[-1]) if kind.startswith("merging") else tiny_tokenizer(kind)
    span = _span(text, subject)
    row, alone = encode_target(tokenizer, text, span, target), encode(tokenizer, text, span)
    assert row.ids[: row.target_start] == alone.ids, "what the model is given before it says the target"
    assert row.last == alone.last
    assert _decode(tokenizer, row.ids) == text + target
    head = _decode(tokenizer, row.ids[: row.target_start])
    assert head == text and _decode(tokenizer, row.ids[row.target_start :]).lstrip() == target
    assert encode_target(tokenizer, f"{text} ", span, f" {target}") == row
    assert encode_pairs(tokenizer, [text], [target]) == [(row.ids, row.target_start)]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_test_above_meets_tokens_that_reach_over_the_border(kind: str) -> None:
    text, _, target = SPACELESS[0]
    tokenizer = merging(kind)
    joined, alone = tokenizer(text + target)["input_ids"], encode_prompt(tokenizer, text)
    assert joined[: len(alone)] != alone


def test_what_stands_between_may_be_said() -> None:
    tokenizer = tiny_tokenizer()
    for text, target in (("日本的首都是", "伦敦"), ("The city is A-", "17")):
        for between in ("", " "):
            ((ids, start),) = encode_pairs(tokenizer, [text], [target], [between])
            assert _decode(tokenizer, ids) == text + between + target
            assert list(ids[:start]) == encode_prompt(tokenizer, text)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(("text", "subject"), CASES)
@pytest.mark.parametrize("target", ["Rome", "東京", "2024", "a city in Italy"])
def test_the_target_follows_with_one_space(kind: str, text: str, subject: str, target: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    span = _span(text, subject)
    row = encode_target(tokenizer, text, span, target)
    alone = encode(tokenizer, text, span)
    assert row.ids == tuple(tokenizer(f"{text} {target}")["input_ids"])
    assert row.ids[: row.target_start] == alone.ids, "what the model sees before it says the target"
    assert row.last == alone.last
    assert _decode(tokenizer, row.ids[row.target_start :]).strip() == target
    assert encode_target(tokenizer, f"{text} ", span, f" {target} ") == row


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_many_at_once_equal_one_at_a_time(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    texts = [text for text, _ in CASES]
    spans = [_span(text, subject) for text, subject in CASES]
    assert encode_all(tokenizer, texts, spans) == [encode(tokenizer, t, s) for t, s in zip(texts, spans, strict=True)]
    targets = ["Rome"] * len(texts)
    assert encode_targets(tokenizer, texts, spans, targets) == [
        encode_target(tokenizer, t, s, "Rome") for t, s in zip(texts, spans, strict=True)
    ]
    assert encode_all(tokenizer, [], []) == []


def test_padding_and_truncation_left_on_by_others_do_not_matter() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer("bytelevel"))
    expected = encode(tokenizer, *(CASES[0][0], _span(*CASES[0])))
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    tokenizer.padding_side = "left"
    assert encode(tokenizer, CASES[0][0], _span(*CASES[0])) == expected


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    left=st.text(max_size=8),
    subject=st.text(min_size=1, max_size=8).filter(lambda s: s.strip()),
    right=st.text(max_size=8),
)
def test_any_text_has_a_last_token_that_covers_the_subject(kind: str, left: str, subject: str, right: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    text = left + subject + right
    try:
        row = encode(tokenizer, text, (len(left), len(left) + len(subject)))
    except FactError:
        return  # a subject of characters that leave no token
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert len(offsets) == len(row.ids)
    final = len(left) + len(subject.rstrip()) - 1
    assert offsets[row.last][0] <= final
    assert all(a > final or b <= final for a, b in offsets[row.last + 1 :])


@dataclass
class _Fact:
    text: str
    subject: str

    @property
    def subject_span(self) -> tuple[int, int]:
        return _span(self.text, self.subject)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_facts_with_the_same_left_side_share_a_key(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    facts = [
        _Fact("Marie Curie was born in", "Marie Curie"),
        _Fact("Marie Curie speaks the language of", "Marie Curie"),
        _Fact("You know that Marie Curie was born in", "Marie Curie"),
        _Fact("Marie Antoinette was born in", "Marie Antoinette"),
    ]
    ids = key_ids(tokenizer, facts)
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3
    assert all(len(one) == 20 and int(one, 16) >= 0 for one in ids)
    assert [key_id(tokenizer, fact) for fact in facts] == ids


def test_bad_spans_and_targets() -> None:
    tokenizer = tiny_tokenizer()
    for span in [(0, 0), (3, 2), (-1, 2), (0, 99)]:
        with pytest.raises(FactError, match="span"):
            encode(tokenizer, "Rome is", span)
    with pytest.raises(FactError, match="no token for the subject"):
        encode(tokenizer, "Rome  is", (4, 6))
    with pytest.raises(FactError, match="target is empty"):
        encode_target(tokenizer, "Rome is", (0, 4), "  ")


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow gives no character offsets"):
        encode(Slow(), "Rome is", (0, 4))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "subject"), CASES)
def test_the_demo_models_tokenizer(demo_model: tuple[object, PreTrainedTokenizerBase], text: str, subject: str) -> None:
    tokenizer = demo_model[1]
    start, end = _span(text, subject)
    row = encode_target(tokenizer, text, (start, end), "Rome")
    assert tokenizer.bos_token_id not in row.ids and tokenizer.eos_token_id not in row.ids
    assert _decode(tokenizer, row.ids[: row.last + 1]) == text[:end]
    assert _decode(tokenizer, row.ids[row.target_start :]) == " Rome"
