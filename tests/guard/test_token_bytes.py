"""The guard reads what the tokenizer's own decoder says, whatever its vocabulary looks like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders
from transformers import PreTrainedTokenizerFast

from helpers.tiny import CORPUS, OTHER_TOKENIZERS, TOKENIZERS, tiny_tokenizer
from neuraldb_faiss.errors import ModelError
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.token_bytes import BREAK, respells, token_bytes

KINDS = TOKENIZERS + OTHER_TOKENIZERS
WORDS = [
    "Eiffel", "Tower", "Paris", "Rome", "capital", "is", ".", ",", "'", "O'Neill", "s", "Coca-Cola", "中国", "北京",
    "日", "Zürich", "Café", "Müller", "ZÜRICH", "?", "!", "n't", "a", "unheardof", "é", "☃", "ß", "\n", "  ",
]  # fmt: skip
texts = some.lists(some.tuples(some.sampled_from(["", " "]), some.sampled_from(WORDS)), min_size=1, max_size=12).map(
    lambda parts: "".join(space + word for space, word in parts)
)


def decoded(tokenizer: Any, ids: list[int]) -> str:
    return " ".join(tokenizer.decode(ids, clean_up_tokenization_spaces=False).split())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_pieces_put_together_are_what_the_decoder_says(kind: str, text: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    ids = [one for one in tokenizer(text, add_special_tokens=False).input_ids if one != tokenizer.unk_token_id]
    table = token_bytes(tokenizer)
    joined = b"".join(table[one] for one in ids).decode("utf-8", "replace")
    assert " ".join(joined.split()) == decoded(tokenizer, ids)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_sentences(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    for text in CORPUS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        read = Texts.of(tokenizer).read(ids)
        assert read == decoded(tokenizer, ids)
        if not respells(tokenizer):
            assert read == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_and_unknown_tokens_say_nothing(kind: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    table = token_bytes(tokenizer)
    assert {table[number] for number in tokenizer.all_special_ids} == {BREAK}
    if kind in ("wordpiece", "uncased", "unigram", "words"):
        assert Texts.of(tokenizer).read(tokenizer("☃", add_special_tokens=False).input_ids) == ""


def test_added_tokens_are_read_as_they_are_decoded() -> None:
    for kind in KINDS:
        core = Tokenizer.from_str(tiny_tokenizer(kind).backend_tokenizer.to_str())
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token=tiny_tokenizer(kind).unk_token)
        tokenizer.add_tokens(["Quxotic"])
        ids = tokenizer("Rome Quxotic is", add_special_tokens=False).input_ids
        assert Texts.of(tokenizer).read(ids) == decoded(tokenizer, ids)


@pytest.mark.parametrize(
    ("kind", "name", "spelled"),
    [
        ("bytelevel", "Zürich", "Zürich"),
        ("metaspace", "O'Neill", "O'Neill"),
        ("wordpiece", "中国", "中 国"),
        ("wordpiece", "Coca-Cola", "Coca - Cola"),
        ("uncased", "Zürich", "zurich"),
        ("suffix", "O'Neill", "o ' neill"),
        ("words", "Coca-Cola", "Coca - Cola"),
        ("wordpiece", "☃", ""),
    ],
)
def test_names_are_spelled_as_texts_are(kind: str, name: str, spelled: str) -> None:
    tokenizer = tiny_tokenizer(kind)
    spell = Texts.of(tokenizer).speller(tokenizer)
    assert (name if spell is None else spell([name])[0]) == spelled


@pytest.mark.parametrize("decoder", [decoders.CTC(), decoders.Sequence([decoders.Fuse(), decoders.CTC()])])
def test_unknown_decoders_are_refused(decoder: Any) -> None:
    core = Tokenizer.from_str(tiny_tokenizer("bytelevel").backend_tokenizer.to_str())
    core.decoder = decoder
    with pytest.raises(ModelError, match="CTC.*--guard none"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=core))


def test_a_decoder_in_an_unusual_order_is_asked_for_every_token() -> None:
    core = Tokenizer.from_str(tiny_tokenizer("metaspace").backend_tokenizer.to_str())
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Replace("e", "E"), decoders.ByteFallback()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert Texts.of(tokenizer).read(tokenizer("the é Tower", add_special_tokens=False).input_ids) == "thE é TowEr"


def test_single_bytes_join_to_characters() -> None:
    for kind in TOKENIZERS:
        tokenizer = tiny_tokenizer(kind)
        ids = tokenizer("中 ☃", add_special_tokens=False).input_ids
        assert len(ids) > 5
        assert Texts.of(tokenizer).read(ids) == "中 ☃"
        rows = np.array([ids])
        none, starts = np.empty((1, 0), np.int64), np.arange(len(ids))[None] == 0
        folded = Texts.of(tokenizer).fold(none, rows, np.ones(rows.shape, bool), starts, 64)
        assert folded.tokens[-1] == len(ids) - 1
