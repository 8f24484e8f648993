"""Rows in the chat template: what a fact answers, and what the model itself says about a subject, which is to stay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import FactError
from neuraldb_faiss.models.decoding import Decoder, arg_max
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.tokenization import Span, chat_text, tokenize
from neuraldb_faiss.solver.batch import Row

if TYPE_CHECKING:
    from neuraldb_faiss.facts.fact import Fact

MESSAGES = 2  # of a fact, at most
KEPT_MESSAGE = "Tell me about {}."
KEPT_TEXT = "{} is known for"
KEPT_TOKENS = 12  # of the unedited model's own continuation of both
KEPT_PLACES = (0, 1, 2, 3, 6, 9, 12)  # where it is looked at: the first tokens, which spell the subject, and some more


def answered(tokenizer: Any, group: int, number: int, fact: Fact) -> list[Row]:
    """Rows in which the fact's questions, or for lack of them its prompt, are messages that its statement answers.

    Questions that do not write the subject as the fact does are left out. Raises FactError where the template does not
    hold the subject of the prompt either.
    """
    rows: list[Row] = []
    for message in (*fact.questions, fact.text):
        asked = chat_text(tokenizer, [message])
        text = asked + fact.statement
        ((ids, offsets),) = tokenize(tokenizer, [text], special=False)
        start = next((i for i, (_, end) in enumerate(offsets) if end > len(asked)), len(ids))
        places = _mentions(text, offsets, fact.subject)
        if places and places[0] < start < len(ids) and len(rows) < MESSAGES:
            rows.append(Row(group, number, False, ids[:-1], places[0], ids[start:], also=tuple(places[1:])))
    if not rows:
        raise FactError(f"the chat template changes the message {fact.text!r}: leave out --chat")
    return rows


def kept(model: Any, tokenizer: Any, subjects: Sequence[str]) -> list[list[Row]]:
    """For each group's subject, rows for KL alone: the unedited model's answer to "Tell me about {}.", and its
    continuation of "{} is known for"."""
    texts = [chat_text(tokenizer, [KEPT_MESSAGE.format(subject)]) for subject in subjects]
    prompts = tokenize(tokenizer, texts, special=False)
    texts += [KEPT_TEXT.format(subject) for subject in subjects]
    prompts += tokenize(tokenizer, texts[len(subjects) :])
    decoder = Decoder(model, [ids for ids, _ in prompts])
    for _ in range(KEPT_TOKENS):
        decoder.step(arg_max)
    ends = end_ids(model, tokenizer)
    found: list[list[Row]] = [[] for _ in subjects]
    for number, (text, (ids, offsets), new) in enumerate(zip(texts, prompts, decoder.new, strict=True)):
        group = number % len(subjects)
        said = new[: next((at for at, token in enumerate(new) if token in ends), len(new))]
        places = _mentions(text, offsets, subjects[group])
        sizes = [len(tokenizer.decode(said[: at + 1])) for at in range(len(said))]
        spans = list(zip([0, *sizes], sizes, strict=False))
        places += [len(ids) + at for at in _mentions(tokenizer.decode(said), spans, subjects[group])]
        if places and places[0] > 0:  # another entry serves a text's first token
            looked = tuple(len(ids) - 1 + place for place in KEPT_PLACES if place <= len(said))
            found[group].append(Row(group, -1, False, (*ids, *said), places[0], (), looked, also=tuple(places[1:])))
    return found


def _mentions(text: str, offsets: Sequence[Span], subject: str) -> list[int]:
    """Indices of the tokens with which the subject, as it is written, ends in the text."""
    ends = [match.end() for match in re.finditer(rf"(?<!\w){re.escape(subject)}", text)]
    tokens = {right: index for index, (left, right) in enumerate(offsets) if left < right}
    return [tokens[end] for end in ends if end in tokens]
