"""Texts that a model writes: sampled for fluency, greedy until they match a target or cannot any more."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts.joining import is_apart
from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.models.tokenization import chat_text, encode_prompts

TOP_K = 5
# Rows, and places of their prompts, that are decoded at once.
CPU_ROWS, CPU_TOKENS = 64, 2048
GPU_ROWS, GPU_TOKENS = 256, 65536
_ENDED = re.compile(r"[ \t]*(?:[.!?。！？．｡]|\n)")
# Given the logits float32 [rows, vocab] of a step, the token of every row, and the rows that are done.
Choose = Callable[[Tensor], list[int]]


def sample_texts(
    model: Any, tokenizer: Any, prompts: Sequence[str], names: Sequence[str], *, length: int = 100,
    seed: int = 0, with_prompt: bool = False,
) -> list[str]:  # fmt: skip
    """One continuation of each prompt, of `length` tokens, sampled among the TOP_K likeliest.

    A row draws from a generator of its own, seeded by `seed` and its name: what it says depends on its batch by
    rounding only. Special tokens are never sampled, so that no text ends early.

    Args:
        names: one a prompt; equal prompts with other names get other texts.
        with_prompt: the reference code's way: prompt and continuation together are `length` tokens and the text.
    """
    rows = encode_prompts(tokenizer, prompts)
    wanted = [max(1, length - len(ids)) if with_prompt else length for ids in rows]
    seeds = [_seed(seed, name) for name in names]
    banned = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    texts = [""] * len(rows)
    for batch in _rows_batches(model, rows):
        generators = [torch.Generator().manual_seed(seeds[i]) for i in batch]

        def choose(logits: Tensor, generators: list[torch.Generator] = generators) -> list[int]:
            logits[:, banned[banned < logits.shape[1]].to(logits.device)] = float("-inf")
            best, tokens = (part.cpu() for part in logits.topk(min(TOP_K, logits.shape[1]), dim=1))
            noise = torch.stack([torch.rand(best.shape[1], generator=g) for g in generators])
            # The Gumbel trick: the arg-max of logits plus this noise is a sample of their softmax.
            pick = (best - (-noise.clamp_min(1e-20).log()).log()).argmax(dim=1, keepdim=True)
            return [int(token) for token in tokens.gather(1, pick)[:, 0]]

        decoder = _Decoder(model, [rows[i] for i in batch])
        for _ in range(max(wanted[i] for i in batch)):
            decoder.step(choose)
        for number, i in enumerate(batch):
            new = decoder.new[number][: wanted[i]]
            head = prompts[i] if with_prompt else ""
            texts[i] = head + tokenizer.decode(new, skip_special_tokens=True)
    return texts


def greedy_texts(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], length: int) -> list[str]:
    """What greedy decoding says behind every row of token ids, up to `length` tokens or the text's end."""
    ends, texts = end_ids(model, tokenizer), [""] * len(rows)
    for batch in _rows_batches(model, rows):
        decoder = _Decoder(model, [rows[i] for i in batch])
        for _ in range(length):
            decoder.step(_greedy)
            if all(ends.intersection(new) for new in decoder.new):
                break
        for number, i in enumerate(batch):
            new = decoder.new[number]
            stop = next((at for at, token in enumerate(new) if token in ends), len(new))
            texts[i] = tokenizer.decode(new[:stop], skip_special_tokens=True)
    return texts


@dataclass(frozen=True, slots=True)
class Match:
    """What greedy decoding says.

    starts: it begins with the target, which ends at a word's end. stops: and with the target it is done: the
    model ends its text, its line or its sentence there.
    """

    starts: bool
    stops: bool


def match_targets(
    model: Any, tokenizer: Any, prompts: Sequence[str], targets: Sequence[str], *, chat: bool = False
) -> list[Match]:
    """Decode every prompt greedily until the text is known to be its target, or known not to be.

    No target token is ever given to the model (arXiv 2502.11177: teacher forcing flatters).

    Args:
        chat: each prompt is a user's message in the tokenizer's chat template.
    """
    texts = [chat_text(tokenizer, [prompt]) for prompt in prompts] if chat else prompts
    rows = encode_prompts(tokenizer, texts, special=not chat)
    answers = [target.strip() for target in targets]
    # Twice the target's own tokens: a model may spell it in smaller pieces.
    limits = [4 + 2 * len(tokenizer(target, add_special_tokens=False)["input_ids"]) for target in answers]
    ends = end_ids(model, tokenizer)
    found: list[Match | None] = [None] * len(rows)
    for batch in _rows_batches(model, rows):
        decoder = _Decoder(model, [rows[i] for i in batch])
        for step in range(1, max(limits[i] for i in batch) + 1):
            decoder.step(_greedy)
            for number, i in enumerate(batch):
                if found[i] is None:
                    new = decoder.new[number]
                    ended = new[-1] in ends
                    text = tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True)
                    found[i] = judge(text, answers[i], done=ended or step >= limits[i], ended=ended)
            if all(found[i] is not None for i in batch):
                break
    return [match or Match(False, False) for match in found]


def judge(text: str, target: str, *, done: bool, ended: bool) -> Match | None:
    """Whether a greedy text is the target; None where more of it must be seen.

    done: there is no more of it. ended: because the model ended its text.
    """
    text = text.lstrip()
    if not text.startswith(target):
        return None if not done and target.startswith(text.rstrip("\ufffd")) else Match(False, False)
    rest = text[len(target) :]
    if not is_apart(target[-1:], rest[:1]):
        return Match(False, False)
    if not rest.strip(" \t\ufffd") and not done:
        return None
    return Match(True, bool(_ENDED.match(rest)) or (ended and not rest.strip()))


def _seed(seed: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _greedy(logits: Tensor) -> list[int]:
    return [int(token) for token in logits.argmax(dim=1)]


def _rows_batches(model: Any, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows of like length, as many as one decoding takes."""
    cpu = input_device(model).type == "cpu"
    size, tokens = (CPU_ROWS, CPU_TOKENS) if cpu else (GPU_ROWS, GPU_TOKENS)
    batches = by_length([len(row) for row in rows], tokens)
    return [batch[at : at + size] for batch in batches for at in range(0, len(batch), size)]


class _Decoder:
    """A batch of prompts, padded on the left, with its key/value cache; `new` holds the tokens so far."""

    def __init__(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        if not all(rows):
            raise EvaluationError("a prompt to continue has no token: give it some text")
        self._model, self._device = model, input_device(model)
        self._ids, self._mask = pad(rows, left=True, device=self._device)
        self._past: Any = None
        known = inspect.signature(model.forward).parameters
        self._placed = "position_ids" in known
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self.new: list[list[int]] = [[] for _ in rows]

    @torch.no_grad()
    def step(self, choose: Choose) -> None:
        """One more token a row."""
        width = self._ids.shape[1]
        # Padding is no position: absolute position embeddings would count it.
        positions = (self._mask.cumsum(dim=1) - 1).clamp_min(0)[:, -width:]
        placed = {"position_ids": positions} if self._placed else {}
        out = self._model(
            input_ids=self._ids, attention_mask=self._mask, past_key_values=self._past, use_cache=True, **placed,
            **self._last,
        )  # fmt: skip
        self._past = out.past_key_values
        logits = out.logits[:, -1].float()
        if not bool(logits.isfinite().any(dim=1).all()) or bool(logits.isnan().any()):
            raise EvaluationError("the model's logits are not finite: try --dtype float32, or take a gentler edit")
        tokens = choose(logits)
        for row, token in zip(self.new, tokens, strict=True):
            row.append(token)
        self._ids = torch.tensor(tokens, device=self._device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
