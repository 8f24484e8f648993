"""Padded batches of token rows, and how rows of like length are put together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], *, left: bool, device: torch.device, fill: int = 0) -> tuple[Tensor, Tensor]:
    """Token rows as one tensor and its attention mask.

    Args:
        rows: token ids; a row may be empty, but not all of them.
        left: pad on the left (to generate), else on the right.
        device: where both tensors are to be.
        fill: the id at padding.

    Returns:
        ids int64 [rows, widest]; mask int64 of the same shape, 1 at real tokens.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), fill)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if len(row):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[number, place] = torch.tensor(row)
            mask[number, place] = 1
    return ids.to(device), mask.to(device)


def by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of like length, shortest first; each has `max_tokens` tokens at most with its padding, or is
    a single row."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not batches or (len(batches[-1]) + 1) * lengths[i] > max_tokens:
            batches.append([])
        batches[-1].append(i)
    return batches
