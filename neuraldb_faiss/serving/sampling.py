"""Requests of different temperature, seed and so on in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_GREEDY = 1e-5  # temperatures below are 0: divided by them, logits overflow, or differ by more than softmax can show
_NEVER = -9999.0  # the logarithm of a probability of 0; JSON has no infinity


@dataclass(frozen=True)
class Sampling:
    """How one request draws its tokens.

    Attributes:
        temperature: 0, or less than 1e-5, takes the likeliest token.
        top_p, top_k, min_p: draw among the likeliest of this mass, among this many (0: all), among those that have this
            share of the likeliest one's probability.
        repetition_penalty: divides the logits of tokens of prompt and answer (multiplies those below 0); 1 for none.
        seed: None for another one each time.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < _GREEDY


class Sampler:
    """Chooses the tokens of one request, from its own generator: what a seed gives does not depend on which requests
    share the batch.

    Attributes:
        plain: it takes the likeliest token and tells nothing, so it need not be asked.
        logprob, likeliest: of the last token chosen, where `likeliest` was asked for (see `asks.Chosen`).
    """

    def __init__(self, sampling: Sampling, likeliest: int | None, device: torch.device) -> None:
        self._sampling = sampling
        self._count = likeliest
        self.plain = sampling.greedy and sampling.repetition_penalty == 1 and likeliest is None
        self.logprob: float | None = None
        self.likeliest: list[tuple[int, float]] = []
        self._penalty: list[LogitsProcessor] = []
        if sampling.repetition_penalty != 1:
            self._penalty.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.greedy:
            return
        self._warpers: list[LogitsProcessor] = []
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            self._warpers.append(MinPLogitsWarper(sampling.min_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The token that follows ids [1, tokens], by scores [1, vocabulary]; scalar."""
        row = scores
        for penalise in self._penalty:
            row = penalise(ids, row.clone())
        token = row[0].argmax() if self._sampling.greedy else self._draw(ids, row)
        if self._count is not None:
            self._tell(scores[0].log_softmax(-1), token)
        return token

    def _draw(self, ids: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        row = (row - row.amax()) / self._sampling.temperature  # the best is 0, so nothing overflows
        for warp in self._warpers:
            row = warp(ids, row)
        chances = row.softmax(-1)[0]
        # As `multinomial`, which on a GPU ends the whole process's use of it where a row is not finite.
        return (chances / torch.empty_like(chances).exponential_(generator=self._generator)).argmax()

    def _tell(self, logprobs: torch.Tensor, token: torch.Tensor) -> None:
        best, tokens = logprobs.topk(min(self._count or 0, len(logprobs)))
        told = [max(float(one), _NEVER) for one in (logprobs[token], *best.tolist())]
        self.logprob = told[0]
        self.likeliest = list(zip(tokens.tolist(), told[1:], strict=True))


class RowSampler(LogitsProcessor):
    """Lets every row's sampler choose, and leaves its token as the only one, so that a greedy `generate` takes it.

    Attributes: finite, bool [rows]: whether the logits of the last step have a largest one.
    """

    finite: torch.Tensor

    def __init__(self, samplers: Sequence[Sampler], lengths: Sequence[int]) -> None:
        """lengths: tokens of each row's prompt; what lies before them is padding."""
        width = max(lengths)
        self._rows = [
            (number, width - length, sampler)
            for number, (sampler, length) in enumerate(zip(samplers, lengths, strict=True))
            if not sampler.plain
        ]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.finite = scores.amax(-1).isfinite()  # NaN spreads
        for number, start, sampler in self._rows:
            row = slice(number, number + 1)
            token = sampler(input_ids[row, start:], scores[row])
            scores[number] = -torch.inf
            scores[number, token] = 0.0
        return scores
