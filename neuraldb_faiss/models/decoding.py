"""Texts that a model writes behind batches of prompts, one token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neuraldb_faiss.errors import EvaluationError
from neuraldb_faiss.models.batching import by_length, pad
from neuraldb_faiss.models.generation import end_ids
from neuraldb_faiss.models.sites import input_device

# Rows, and places of their prompts, that are decoded at once.
CPU_ROWS, CPU_TOKENS = 64, 2048
GPU_ROWS, GPU_TOKENS = 256, 65536
# Given the logits float32 [rows, vocab] of a step, the token of every row.
Choose = Callable[[Tensor], list[int]]


def greedy_texts(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], length: int) -> list[str]:
    """What greedy decoding says behind every row of token ids, up to `length` tokens or the text's end."""
    ends, texts = end_ids(model, tokenizer), [""] * len(rows)
    for batch in rows_batches(model, rows):
        decoder = Decoder(model, [rows[i] for i in batch])
        for _ in range(length):
            decoder.step(arg_max)
            if all(ends.intersection(new) for new in decoder.new):
                break
        for number, i in enumerate(batch):
            new = decoder.new[number]
            stop = next((at for at, token in enumerate(new) if token in ends), len(new))
            texts[i] = tokenizer.decode(new[:stop], skip_special_tokens=True)
    return texts


def arg_max(logits: Tensor) -> list[int]:
    return [int(token) for token in logits.argmax(dim=1)]


def rows_batches(model: Any, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of rows of like length, as many as one decoding takes."""
    cpu = input_device(model).type == "cpu"
    size, tokens = (CPU_ROWS, CPU_TOKENS) if cpu else (GPU_ROWS, GPU_TOKENS)
    batches = by_length([len(row) for row in rows], tokens)
    return [batch[at : at + size] for batch in batches for at in range(0, len(batch), size)]


class Decoder:
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
