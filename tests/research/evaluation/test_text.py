"""Fluency and consistency against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from neuraldb_faiss.research.evaluation.text import TfIdf, fluency, ngram_entropy, words


def test_words_are_split_as_nltk_does() -> None:
    text = 'He said: "I can\'t." Then he left.'
    assert words(text) == ["He", "said", ":", "``", "I", "ca", "n't", ".", "''", "Then", "he", "left", "."]


def test_entropy_by_hand() -> None:
    # bigrams of a b a b a: ab, ba, ab, ba -> 1 bit; trigrams: aba, bab, aba -> 2/3, 1/3
    tokens = ["a", "b", "a", "b", "a"]
    assert ngram_entropy(tokens, 2) == pytest.approx(1.0)
    third = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy(tokens, 3) == pytest.approx(third)
    assert ngram_entropy(["a"], 2) == 0.0


def test_fluency_weighs_and_averages() -> None:
    third = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    one = 1 / 3 * 1.0 + 2 / 3 * third
    assert fluency(["a b a b a"]) == pytest.approx(one)
    # the mean of the reference code's 2/3 H2 and 4/3 H3
    assert fluency(["a b a b a"]) == pytest.approx((2 / 3 * 1.0 + 4 / 3 * third) / 2)
    assert fluency(["a b a b a"], "sum") == pytest.approx(2 * one)
    # a b c d: three bigrams, two trigrams, all different
    two = 1 / 3 * math.log2(3) + 2 / 3 * 1.0
    assert fluency(["a b a b a", "a b c d"]) == pytest.approx((one + two) / 2)


def test_consistency_by_hand() -> None:
    # idf (scikit-learn's smooth form): ln((1 + n) / (1 + df)) + 1, n = 3 documents
    table = TfIdf(["rome city", "rome italy", "paris city"])
    rome, city, italy = math.log(4 / 3) + 1, math.log(4 / 3) + 1, math.log(4 / 2) + 1
    left, right = {"rome": 2 * rome, "city": city}, {"rome": rome, "italy": italy}
    norm = math.hypot(*left.values()) * math.hypot(*right.values())
    cosine = left["rome"] * right["rome"] / norm
    # two texts are one document; a word that no document of the corpus has counts nothing
    assert table.consistency(["rome city", "unknown rome"], ["Rome Italy"]) == pytest.approx(cosine)
    assert table.consistency(["nothing known"], ["rome"]) == 0.0
    assert table.consistency(["paris city"], ["city paris"]) == pytest.approx(1.0)
