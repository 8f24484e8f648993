"""Figures about generated texts: n-gram entropy (fluency) and TF-IDF likeness (consistency)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

from neuraldb_faiss.extras import extra

# Weights of the 2-gram and the 3-gram entropy. "mean" is the measure that the field reports: the reference
# code takes the mean of 2/3 H2 and 4/3 H3. "sum" is eq. 16 as it is printed, twice that.
FLUENCY_WEIGHTS = {"mean": (1 / 3, 2 / 3), "sum": (2 / 3, 4 / 3)}


def words(text: str) -> list[str]:
    """Word tokens as NLTK's `word_tokenize` gives them, with sentences found without its trained model."""
    sentences, tokenizer = _nltk()
    return [word for sentence in sentences.tokenize(text) for word in tokenizer.tokenize(sentence)]


@cache
def _nltk() -> tuple[Any, Any]:
    with extra("eval"):
        from nltk.tokenize import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktSentenceTokenizer

    return PunktSentenceTokenizer(), NLTKWordTokenizer()


def ngram_entropy(tokens: Sequence[str], n: int) -> float:
    """Entropy in bits of the distribution of n-grams; 0 where there are none."""
    with extra("eval"):
        from scipy.stats import entropy

    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    return float(entropy(list(counts.values()), base=2)) if counts else 0.0


def fluency(texts: Sequence[str], weights: str = "mean") -> float:
    """Weighted 2- and 3-gram entropy in bits (eq. 16), mean over texts; `weights` is of FLUENCY_WEIGHTS."""
    two, three = FLUENCY_WEIGHTS[weights]
    values = []
    for text in texts:
        tokens = words(text)
        values.append(two * ngram_entropy(tokens, 2) + three * ngram_entropy(tokens, 3))
    return sum(values) / len(values)


class TfIdf:
    """TF-IDF vectors with an idf table of one's own.

    The table that the field uses is not public in usable form, so the figure is comparable only between runs
    with the same `corpus`.
    """

    def __init__(self, corpus: Sequence[str]) -> None:
        with extra("eval"):
            from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer()
        self._vectorizer.fit(corpus)

    def consistency(self, texts: Sequence[str], references: Sequence[str]) -> float:
        """Cosine of the texts' vector and the references', each joined to one document, as in the reference code."""
        left, right = self._vectorizer.transform([" ".join(texts), " ".join(references)])
        return float((left @ right.T).toarray()[0, 0])  # the rows have unit length, or are zero
