"""What a module of a model gets or gives at the last token of each fact's subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuraldb_faiss.models import encode_all
from neuraldb_faiss.models.batching import by_length
from neuraldb_faiss.models.interventions import capture_last, frozen
from neuraldb_faiss.models.sites import unwrap

Place = tuple[str, tuple[int, int]]  # a text and its subject's span


def outputs_at(
    model: Any, tokenizer: Any, module: nn.Module, places: Sequence[Place], max_tokens: int = 2048
) -> Tensor:
    """Output of `module` at the token that holds the last character of each place's span.

    Args:
        max_tokens: of one forward pass, which ends at the module. Weights are the model's present ones.

    Returns:
        float32 [len(places), d], on the CPU.
    """
    return _read(model, tokenizer, module, places, max_tokens, output=True)


def inputs_at(model: Any, tokenizer: Any, module: nn.Module, places: Sequence[Place], max_tokens: int = 2048) -> Tensor:
    """As `outputs_at`, the module's input."""
    return _read(model, tokenizer, module, places, max_tokens, output=False)


def _read(
    model: Any, tokenizer: Any, module: nn.Module, places: Sequence[Place], max_tokens: int, *, output: bool
) -> Tensor:
    model = unwrap(model)
    encoded = encode_all(tokenizer, [text for text, _ in places], [span for _, span in places])
    rows = [row.ids[: row.last + 1] for row in encoded]
    found: dict[int, Tensor] = {}
    with frozen(model), torch.no_grad():
        for batch in by_length([len(row) for row in rows], max_tokens):
            values = capture_last(model, module, [rows[i] for i in batch], output=output)
            found.update(zip(batch, values, strict=True))
    return torch.stack([found[i] for i in range(len(rows))])
