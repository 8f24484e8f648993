"""The guard "whole-words": the subject guard, which in a prompt also sees whether a word goes on behind the subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from neuraldb_faiss.guard.asking import Asking
from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.guard.name_index import Folded
from neuraldb_faiss.guard.subject import SubjectGate, SubjectMatcher
from neuraldb_faiss.guard.texts import Texts
from neuraldb_faiss.guard.turns import Turns
from neuraldb_faiss.index.matcher import Matcher


class WholeWordsGate(SubjectGate):
    """Reads the next token too, where the forward has it and the KV cache is empty.

    So in a prompt but for its last token, and never in what is generated.
    """

    guard = "whole-words"

    def _text(self, tokens: Tokens) -> Folded:
        text = super()._text(tokens)
        return replace(text, ahead=True) if tokens.past.shape[1] == 0 else text


def make(source: Any, gamma: float, tokenizer: Any, plain: Callable[[], Matcher]) -> WholeWordsGate:
    """The gate of the guard "whole-words" (`registry.GuardKind.target`)."""
    texts = Texts.of(tokenizer)
    matcher = SubjectMatcher(source, gamma=gamma, spell=texts.speller(tokenizer))
    return WholeWordsGate(matcher, texts, plain, Asking(texts, Turns.of(tokenizer), matcher.subjects_in(texts)))
