"""Requests of different temperature, top_p and seed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """How one request draws its tokens; temperature 0 takes the likeliest. seed: None for another one each time."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


class RowSampler(LogitsProcessor):
    """Draws each row's token by its own rules and from its own generator, and leaves that token as the only one.

    So a greedy `generate` takes it, and what a seed gives does not depend on which requests share the batch.
    """

    def __init__(self, rows: Sequence[Sampling], device: torch.device) -> None:
        self._draws: list[tuple[int, list[LogitsProcessor], torch.Generator]] = []
        for number, row in enumerate(rows):
            if row.temperature == 0:
                continue
            generator = torch.Generator(device)
            if row.seed is None:
                generator.seed()
            else:
                generator.manual_seed(row.seed)
            warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(row.temperature)]
            if row.top_p < 1:
                warpers.append(TopPLogitsWarper(row.top_p))
            self._draws.append((number, warpers, generator))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for number, warpers, generator in self._draws:
            row = scores[number : number + 1]
            for warp in warpers:
                row = warp(input_ids, row)
            token = torch.multinomial(row.softmax(-1), 1, generator=generator)
            scores[number] = -torch.inf
            scores[number, token[0]] = 0.0
        return scores
