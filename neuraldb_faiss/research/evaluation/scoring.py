"""Teacher forcing: how likely a model finds a target behind a prompt, for many pairs at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.facts import Fact
from neuraldb_faiss.facts.joining import separator
from neuraldb_faiss.models import encode_pairs
from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.interventions import gathered_head
from neuraldb_faiss.models.prompt_ends import prompts_end
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.research.datasets.cases import Pair

# Places of one forward, padding counted. A CPU gains nothing from more; a GPU is filled by this.
CPU_TOKENS = 1024
GPU_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class Scored:
    """One pair.

    nll: mean negative log-likelihood per target token, in nats (the P of eqs. 13-16 is exp(-nll)). correct:
    for each target token, whether it is the arg-max given the prompt and the target tokens before it.
    """

    nll: float
    correct: tuple[bool, ...]

    @property
    def all_correct(self) -> bool:
        return all(self.correct)

    @property
    def share_correct(self) -> float:
        return sum(self.correct) / len(self.correct)

    @property
    def probability(self) -> float:
        """exp(-nll): the geometric mean of the target tokens' probabilities."""
        return math.exp(-self.nll)


def separators_of(facts: Iterable[Fact]) -> dict[str, str]:
    """What stands behind the prompts of the facts that say so in their metadata."""
    return {fact.text: fact.separator for fact in facts if "separator" in fact.metadata}


def score_pairs(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], *, separators: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
) -> dict[Pair, Scored]:  # fmt: skip
    """Score every (prompt, target) with the model as it is now: attached, edited or bare.

    A target stands behind its prompt as a fact's does: with one space between, or none where the script has none.
    `separators` has what stands between for the prompts that say so (`separators_of`). Pairs whose tokens are the same
    up to the last, as of one prompt and targets of one token, are read off one row. Batches hold rows of like length,
    at most `max_tokens` places, and are padded on the right, so that a pair's result depends on its batch by rounding
    only.

    Raises:
        EvaluationError: the logits are not finite.
        FactError: an empty target.
    """
    unique = list(dict.fromkeys(pairs))
    if not unique:
        return {}
    device = input_device(model)
    if max_tokens is None:
        max_tokens = CPU_TOKENS if device.type == "cpu" else GPU_TOKENS
    said = separators or {}
    between = [said[prompt] if prompt in said else separator(prompt, target) for prompt, target in unique]
    rows = encode_pairs(tokenizer, [prompt for prompt, _ in unique], [target for _, target in unique], between)
    # A prompt without a token in front of its target gives the first target token no distribution.
    bare = next((pair for pair, (_, start) in zip(unique, rows, strict=True) if start == 0), None)
    if bare is not None:
        raise EvaluationError(f"the prompt before the target {bare[1]!r} has no token: give it some text")
    # The last token of a row is only predicted, never read.
    shared: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for index, (ids, start) in enumerate(rows):
        shared.setdefault((ids[:-1], start), []).append(index)
    inputs = list(shared)
    found: dict[int, Scored] = {}
    for batch in by_length([len(ids) for ids, _ in inputs], max_tokens):
        read = [inputs[i] for i in batch]
        places = [(number, index) for number, one in enumerate(read) for index in shared[one]]
        scored = _score(model, device, read, [(number, *rows[index]) for number, index in places])
        found.update(zip((index for _, index in places), scored, strict=True))
    return {pair: found[index] for index, pair in enumerate(unique)}


@torch.no_grad()
def _score(
    model: Any,
    device: torch.device,
    inputs: Sequence[tuple[tuple[int, ...], int]],
    wanted: Sequence[tuple[int, tuple[int, ...], int]],
) -> list[Scored]:
    """`inputs`: tokens, and how many of them the prompt has. `wanted`: which of them is read, all tokens of the pair,
    and where its target begins."""
    ids, mask = pad([read for read, _ in inputs], left=False, device=device)
    places = [(row, at - 1, tokens[at]) for row, tokens, start in wanted for at in range(start, len(tokens))]
    row, column, target = (torch.tensor(values, device=device) for values in zip(*places, strict=True))
    with prompts_end([start for _, start in inputs]), gathered_head(model, row, column) as read:
        logits = read(model(input_ids=ids, attention_mask=mask, use_cache=False)).float()
    target = target.to(logits.device)
    nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    if not bool(nll.isfinite().all()):
        raise EvaluationError("the model's logits are not finite: try --dtype float32, or take a gentler edit")
    correct = logits.argmax(dim=1) == target
    scored, at = [], 0
    for _, tokens, start in wanted:
        end = at + len(tokens) - start
        hits = tuple(bool(hit) for hit in correct[at:end].tolist())
        scored.append(Scored(float(nll[at:end].double().mean()), hits))
        at = end
    return scored
