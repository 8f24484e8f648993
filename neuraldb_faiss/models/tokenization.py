"""Token ids of a prompt, and the place of the subject's last token in them.

A fact's key is taken at the LAST token of its subject (eq. 20 of the NeuralDB paper, arXiv 2507.18028). That
token is found by the tokenizer's character offsets, so it does not matter whether a BOS token is added,
whether a leading space belongs to a token, or how many tokens one character takes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.errors import FactError, ModelError
from neuraldb_faiss.facts.joining import separator
from neuraldb_faiss.strict_json import is_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neuraldb_faiss.facts.fact import Fact

Span = tuple[int, int]
Tokenized = tuple[tuple[int, ...], list[Span]]  # ids, and the characters [start, end) that each stands for

_NO_TARGET = "the target is empty: give the words that the prompt should be continued with"


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text; ``ids[last]`` holds the subject's last character."""

    ids: tuple[int, ...]
    last: int


@dataclass(frozen=True, slots=True)
class EncodedTarget:
    """Token ids of a prompt and its target; ``ids[target_start:]`` are the target's, with the space before it where
    there is one."""

    ids: tuple[int, ...]
    last: int
    target_start: int


def encode_prompt(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """The token ids of a text that the model is to go on with: ``encode_prompts`` for one."""
    return encode_prompts(tokenizer, [text], special=special)[0]


def encode_prompts(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """The token ids of texts that the model is to go on with, as keys and residuals are made on them.

    Special tokens that the tokenizer puts before a text (BOS) stay; what it puts behind one (EOS, SEP) is left out,
    for behind it the model would begin another text. Never truncated. Every prompt in this package is encoded here or
    by ``encode``. Any tokenizer will do.

    Args:
        special: False for a text that has them already, as a chat template's.

    Raises FactError for a text with half of a surrogate pair.
    """
    for text in texts:
        if not is_text(text):
            raise FactError(f"the text {text[:80]!a} holds half of a surrogate pair; mend it")
    if getattr(tokenizer, "is_fast", False):
        return [list(ids) for ids, _ in tokenize(tokenizer, texts, special=special)]
    rows = []
    for text in texts:
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(text, add_special_tokens=special)["input_ids"])
        ends = (at + len(bare) for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare)
        rows.append(full[: next(ends, len(full))])
    return rows


def appended_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts behind a text, which ``encode_prompts`` leaves out."""
    text = "a"
    return list(tokenizer(text)["input_ids"])[len(encode_prompt(tokenizer, text)) :]


def encode(tokenizer: PreTrainedTokenizerBase, text: str, span: Span) -> Encoded:
    """Tokenize ``text`` as the model expects it: with the special tokens that the tokenizer puts before it
    (BOS), none behind it (EOS), never truncated.

    ``span`` is the subject's (start, end) in characters of ``text``. Raises FactError where the subject has
    no token of its own, ModelError where the tokenizer gives no offsets.
    """
    return encode_all(tokenizer, [text], [span])[0]


def encode_all(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: Sequence[Span]) -> list[Encoded]:
    """``encode`` for many texts in one call of the tokenizer, which then uses all processor cores."""
    rows = tokenize(tokenizer, texts)
    return [
        Encoded(ids, _last_token(offsets, text, span))
        for (ids, offsets), text, span in zip(rows, texts, spans, strict=True)
    ]


def encode_target(tokenizer: PreTrainedTokenizerBase, text: str, span: Span, target: str) -> EncodedTarget:
    """Tokenize ``text`` and ``target`` as one text, with what belongs between them (``facts.joining.separator``).

    White space at the end of ``text`` and around ``target`` gives way to it. ``ids[:target_start]`` are the tokens of
    ``text`` alone, whatever follows. Raises FactError for an empty target, and as ``encode`` does.
    """
    return encode_targets(tokenizer, [text], [span], [target])[0]


def encode_targets(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], spans: Sequence[Span], targets: Sequence[str],
    separators: Sequence[str] | None = None,
) -> list[EncodedTarget]:  # fmt: skip
    """``encode_target`` for many texts in one call of the tokenizer; ``separators``: what stands before each target
    ("" or " "), None for what belongs there."""
    encoded = []
    rows, joined, starts = _joined(tokenizer, texts, targets, separators)
    for (ids, offsets), text, start, span in zip(rows, joined, starts, spans, strict=True):
        encoded.append(EncodedTarget(ids, _last_token(offsets, text, span), start))
    return encoded


def has_chat(tokenizer: Any) -> bool:
    """Whether the tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_text(tokenizer: Any, turns: Sequence[str]) -> str:
    """A conversation in the tokenizer's chat template, up to where the assistant answers; user and assistant take
    turns, the user first. It holds the template's special tokens: tokenize it with ``add_special_tokens=False``."""
    told = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return str(tokenizer.apply_chat_template(told, add_generation_prompt=True, tokenize=False))


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], targets: Sequence[str],
    separators: Sequence[str] | None = None,
) -> list[tuple[tuple[int, ...], int]]:  # fmt: skip
    """(ids, target_start) of each text and its target, joined as ``encode_targets`` joins them; no subject."""
    rows, _, starts = _joined(tokenizer, texts, targets, separators)
    return [(ids, start) for (ids, _), start in zip(rows, starts, strict=True)]


def _joined(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], targets: Sequence[str], separators: Sequence[str] | None
) -> tuple[list[Tokenized], list[str], list[int]]:
    """(ids, offsets), the text, and the index of the target's first token, of each text with its target."""
    prompts = [text.rstrip() for text in texts]
    answers = [target.strip() for target in targets]
    if not all(answers):
        raise FactError(_NO_TARGET)
    if separators is None:
        separators = [separator(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    joined = [a + between + b for a, between, b in zip(prompts, separators, answers, strict=True)]
    rows, starts = tokenize(tokenizer, joined), []
    tight = [i for i, between in enumerate(separators) if not between]
    for i, alone in zip(tight, tokenize(tokenizer, [prompts[i] for i in tight]), strict=True):
        rows[i] = _after(tokenizer, alone, prompts[i], answers[i], rows[i])
    for (ids, offsets), prompt in zip(rows, prompts, strict=True):
        # The space itself counts as the target's, whether it is a token, part of one, or trimmed from
        # offsets.
        start = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(ids))
        if start == len(ids):
            raise FactError(f"the tokenizer leaves no token for the target of {prompt!r}: use another target")
        starts.append(start)
    return rows, joined, starts


def _after(tokenizer: Any, alone: Tokenized, prompt: str, answer: str, joined: Tokenized) -> Tokenized:
    """The prompt's own tokens and then the answer's, where nothing stands between the two.

    A tokenizer may make one token of the prompt's end and the answer's beginning. A model that is given the prompt
    never sees that token: it goes on behind the prompt's own.
    """
    size = len(alone[0])
    if joined[0][:size] == alone[0]:
        return joined
    # Behind a line break a tokenizer puts no mark of a word's or a text's beginning.
    ((ids, offsets),) = tokenize(tokenizer, ["\n" + answer], special=False)
    first = next((i for i, (start, end) in enumerate(offsets) if end > 1), len(ids))
    shift = len(prompt) - 1
    behind = [(start + shift, end + shift) for start, end in offsets[first:]]
    return alone[0] + ids[first:], alone[1] + behind


def key_id(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> str:
    """20 hex digits over the token ids up to and including the subject's last token.

    In a causal model these tokens alone decide the key: facts with equal ``key_id`` have equal keys.
    """
    return key_ids(tokenizer, [fact])[0]


def key_ids(
    tokenizer: PreTrainedTokenizerBase, facts: Sequence[Fact], *, at_prompt_end: bool = False
) -> list[str]:  # fmt: skip
    """``key_id`` of many facts in one call of the tokenizer; ``at_prompt_end``: of keys that are taken there."""
    texts = [fact.text for fact in facts]
    spans = [fact.subject_span for fact in facts]
    if at_prompt_end:
        spans = [(start, len(text)) for text, (start, _) in zip(texts, spans, strict=True)]
    encoded = encode_all(tokenizer, texts, spans)
    return [_digest(row.ids[: row.last + 1]) for row in encoded]


def _digest(ids: tuple[int, ...]) -> str:
    return hashlib.sha256(struct.pack(f"<{len(ids)}q", *ids)).hexdigest()[:20]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool = True) -> list[Tokenized]:
    """(ids, offsets) a text, without the special tokens that the tokenizer puts behind it; ``special``: with those
    that it puts before. Raises ModelError where the tokenizer gives no offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets: load a fast tokenizer (one with a tokenizer.json)"
        )
    if not texts:
        return []
    batch = tokenizer(
        list(texts),
        add_special_tokens=special,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        return_attention_mask=False,
        verbose=False,
    )
    rows = []
    for ids, offsets, marks in zip(
        batch["input_ids"], batch["offset_mapping"], batch["special_tokens_mask"], strict=True
    ):
        end = len(ids)
        while end and marks[end - 1] and offsets[end - 1][0] == offsets[end - 1][1]:
            end -= 1
        rows.append((tuple(ids[:end]), [(int(a), int(b)) for a, b in offsets[:end]]))
    return rows


def _last_token(offsets: Sequence[Span], text: str, span: Span) -> int:
    start, end = span
    if not 0 <= start < end <= len(text):
        raise FactError(f"the subject's span {span} is not inside the prompt {text!r}")
    subject = text[start:end]
    # Offsets may leave white space out, so the last character that is sure to have a token is looked for.
    final = start + len(subject.rstrip()) - 1
    # A character of several bytes can be several tokens with the same offsets: the last of them ends it.
    holding = [i for i, (left, right) in enumerate(offsets) if left <= final < right]
    if not holding:
        # A normaliser dropped that character (an accent, a joiner): the nearest token before it, in the
        # subject.
        holding = [i for i, (left, right) in enumerate(offsets) if left < right and start < right <= final]
    if final < start or not holding:
        raise FactError(f"the tokenizer leaves no token for the subject {subject!r} of {text!r}: use another subject")
    return holding[-1]
