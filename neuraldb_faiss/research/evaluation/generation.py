"""Texts that a model writes: sampled for fluency, greedy until they match a target or cannot any more."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuraldb_faiss.facts.joining import is_apart
from neuraldb_faiss.models.decoding import Decoder, arg_max, greedy_texts, rows_batches
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.tokenization import chat_text, encode_prompts

TOP_K = 5
__all__ = ["Match", "greedy_texts", "judge", "match_targets", "sample_texts"]
_ENDED = re.compile(r"[ \t]*(?:[.!?。！？．｡]|\n)")


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
    for batch in rows_batches(model, rows):
        generators = [torch.Generator().manual_seed(seeds[i]) for i in batch]

        def choose(logits: Tensor, generators: list[torch.Generator] = generators) -> list[int]:
            logits[:, banned[banned < logits.shape[1]].to(logits.device)] = float("-inf")
            best, tokens = (part.cpu() for part in logits.topk(min(TOP_K, logits.shape[1]), dim=1))
            noise = torch.stack([torch.rand(best.shape[1], generator=g) for g in generators])
            # The Gumbel trick: the arg-max of logits plus this noise is a sample of their softmax.
            pick = (best - (-noise.clamp_min(1e-20).log()).log()).argmax(dim=1, keepdim=True)
            return [int(token) for token in tokens.gather(1, pick)[:, 0]]

        decoder = Decoder(model, [rows[i] for i in batch])
        for _ in range(max(wanted[i] for i in batch)):
            decoder.step(choose)
        for number, i in enumerate(batch):
            new = decoder.new[number][: wanted[i]]
            head = prompts[i] if with_prompt else ""
            texts[i] = head + tokenizer.decode(new, skip_special_tokens=True)
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
    for batch in rows_batches(model, rows):
        decoder = Decoder(model, [rows[i] for i in batch])
        for step in range(1, max(limits[i] for i in batch) + 1):
            decoder.step(arg_max)
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
