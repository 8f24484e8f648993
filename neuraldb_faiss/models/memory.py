"""Memory: how many tokens fit into one pass, and smaller batches where it ran out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import psutil
import torch

from neuraldb_faiss.models.sites import FFNSite, input_device, text_config

T = TypeVar("T")
Batch = list[int]

_SHARE = 0.5  # of the free memory: others want some, and the estimate is one
_STATES, _INNER = 14, 6  # tensors of d2 and of d1 numbers a place that a block keeps for its gradient (measured: Llama)
_LOGITS = 4 * 4 / 3  # bytes a place and word: float32 logits and what the loss makes of them, at a place in three
_CPU_SAYS = ("can't allocate memory", "not enough memory")

logger = logging.getLogger(__name__)


def places_with_gradients(model: Any, site: FFNSite, most: int) -> int:
    """How many places one pass through the blocks above the site may have, its gradients kept: `most`, or what half of
    the free memory holds by an estimate from the model's shape; at least 1."""
    blocks = int(getattr(text_config(model), "num_hidden_layers", 1)) - site.layer
    kept = blocks * (_STATES * site.d2 + _INNER * site.d1) * model.dtype.itemsize
    words = int(getattr(text_config(model), "vocab_size", 0))
    return max(1, min(most, int(_SHARE * free_bytes(input_device(model)) / (kept + _LOGITS * words))))


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device, PyTorch's own idle part included."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return int(psutil.virtual_memory().available)


def in_parts(
    batches: Sequence[Batch], size: Callable[[Batch], int], run: Callable[[Batch], T]
) -> Iterator[tuple[Batch, T]]:
    """Every batch with what `run` makes of it; one that does not fit into memory comes in halves, and so do later ones
    of its `size`.

    Raises what `run` raises, also for want of memory where a batch has a single member.
    """
    waiting, too_much = list(reversed(batches)), float("inf")
    while waiting:
        batch = waiting.pop()
        if len(batch) == 1 or size(batch) < too_much:
            try:
                result = run(batch)
            except Exception as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
            else:
                yield batch, result
                continue
            # Only here, where the exception no longer holds the frames, is their memory free.
            too_much = size(batch)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            logger.warning("out of memory with %d texts or facts at once: going on with half as many", len(batch))
        middle = (len(batch) + 1) // 2
        waiting += [batch[middle:], batch[:middle]]


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_SAYS)
