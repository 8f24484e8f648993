"""What a module of a model gives out at the last token of each fact's subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuraldb_faiss.models import encode_all
from neuraldb_faiss.models.interventions import Stop, frozen, on_output, stopping
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.solver.batch import pad

Place = tuple[str, tuple[int, int]]  # a text and its subject's span


def outputs_at(
    model: Any, tokenizer: Any, module: nn.Module, places: Sequence[Place], max_tokens: int = 2048
) -> Tensor:
    """Output of `module` at the last token of each place's subject: float32 [len(places), width], on the CPU.

    `max_tokens` bounds one forward pass, which ends at the module. Weights are the model's present ones.
    """
    model = unwrap(model)
    encoded = encode_all(tokenizer, [text for text, _ in places], [span for _, span in places])
    rows = [row.ids[: row.last + 1] for row in encoded]
    found: dict[int, Tensor] = {}
    with frozen(model), torch.no_grad():
        for batch in by_length([len(row) for row in rows], max_tokens):
            values = _run(model, module, [rows[i] for i in batch])
            found.update(zip(batch, values, strict=True))
    return torch.stack([found[i] for i in range(len(rows))])


def by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of like length, each at most `max_tokens` places with its padding, or one row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > max_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches


def _run(model: Any, module: nn.Module, rows: Sequence[Sequence[int]]) -> Tensor:
    ids, mask = pad(rows, left=False, device=input_device(model))
    seen: list[Tensor] = []

    def take(output: Tensor) -> None:
        seen.append(output.reshape(*ids.shape, -1))
        raise Stop

    with on_output(module, take), stopping():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    last = torch.tensor([len(row) - 1 for row in rows], device=seen[0].device)
    return seen[0][torch.arange(len(rows), device=last.device), last].float().cpu()
