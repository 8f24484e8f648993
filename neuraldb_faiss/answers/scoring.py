"""How likely a model finds answers behind prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.interventions import gathered_head
from neuraldb_faiss.models.prompt_ends import prompts_end
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.models.tokenization import tokenize

CPU_TOKENS, GPU_TOKENS = 1024, 16384  # places of one forward, padding counted


@dataclass(frozen=True, slots=True)
class Told:
    """An answer behind a prompt.

    Attributes:
        prompt: as the model gets it. special: whether its special tokens are yet to be added (a chat template's text
            has them). answer: with the space before it, if any.
        without: characters of `answer`, [start, end), whose tokens do not count.
    """

    prompt: str
    special: bool
    answer: str
    without: tuple[int, int] | None = None


@torch.no_grad()
def losses(model: Any, tokenizer: Any, told: Sequence[Told]) -> list[float | None]:
    """Mean negative log-likelihood per token of every answer, in nats; None for one without a token that counts."""
    rows: list[tuple[tuple[int, ...], list[int], int]] = []  # tokens, places that count, where the answer begins
    for one in told:
        ((ids, offsets),) = tokenize(tokenizer, [one.prompt + one.answer], special=one.special)
        begin = len(one.prompt)
        places = [at for at, (start, end) in enumerate(offsets)
                  if at and end > begin and not _inside(start - begin, end - begin, one.without)]  # fmt: skip
        first = next((at for at, (_, end) in enumerate(offsets) if end > begin), len(ids))
        rows.append((ids, places, first))
    found: list[float | None] = [None] * len(rows)
    shared: dict[tuple[int, ...], list[int]] = {}  # one text may be asked with and without a part of it
    for number, (ids, places, _) in enumerate(rows):
        if places:
            shared.setdefault(ids, []).append(number)
    texts, device = list(shared), input_device(model)
    fill = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    for batch in by_length([len(ids) for ids in texts], fill):
        some = [texts[at] for at in batch]
        every = [sorted({at for number in shared[ids] for at in rows[number][1]}) for ids in some]
        wanted = [
            (row, at, ids[at]) for row, (ids, places) in enumerate(zip(some, every, strict=True)) for at in places
        ]
        row, place, token = (torch.tensor(values, device=device) for values in zip(*wanted, strict=True))
        padded, mask = pad(some, left=False, device=device)
        prompts = [min(rows[number][2] for number in shared[ids]) for ids in some]
        with prompts_end(prompts), gathered_head(model, row, place - 1) as read:
            logits = read(model(input_ids=padded, attention_mask=mask, use_cache=False)).float()
        nll = torch.nn.functional.cross_entropy(logits, token.to(logits.device), reduction="none").double().tolist()
        read_off = {(number, at): value for (number, at, _), value in zip(wanted, nll, strict=True)}
        for line, ids in enumerate(some):
            for number in shared[ids]:
                values = [read_off[line, at] for at in rows[number][1]]
                mean = sum(values) / len(values)
                found[number] = mean if math.isfinite(mean) else None
    return found


def _inside(start: int, end: int, place: tuple[int, int] | None) -> bool:
    """Whether a token's characters touch the place."""
    return place is not None and start < place[1] and end > place[0]
