"""Asynchronous copies between a GPU and the host.

Whoever waits for a copy has everything that was put on its way before, in the same stream; so a forward that starts
all its copies and then waits for the last one stops once. Other accelerators than CUDA's are read with plain copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def is_gpu(device: torch.device) -> bool:
    """Whether reading what lies there makes the host wait for a GPU."""
    return device.type == "cuda"


def on_gpu(tensor: torch.Tensor) -> bool:
    return is_gpu(tensor.device)


class Transfer:
    """Tensors on their way to the host."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        """Starts the copies, into pinned memory; tensors that the host can read are taken as they are."""
        self._event: torch.cuda.Event | None = None
        self._tensors = [tensor.detach() for tensor in tensors]
        away = [tensor for tensor in self._tensors if on_gpu(tensor)]
        if away:
            self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in self._tensors]
            self._event = mark(away[0].device)

    @property
    def done(self) -> bool:
        return self._event is None or self._event.query()

    def arrays(self) -> list[np.ndarray]:
        """Waits where they have not come yet."""
        if self._event is not None and not self._event.query():
            self._event.synchronize()
        self._event = None
        return [tensor.cpu().numpy() for tensor in self._tensors]


def mark(device: torch.device) -> torch.cuda.Event:
    """An event behind everything that was given to the device's current stream."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy there, for which the host does not wait."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
