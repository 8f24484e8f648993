"""Arguments of one forward, and the tokens they describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss.guard.gate import Tokens
from neuraldb_faiss.hook.kv_history import recall
from neuraldb_faiss.index.transfers import Transfer, on_gpu
from neuraldb_faiss.models.prompt_ends import prompt_lengths


@dataclass(slots=True, eq=False)
class Call:
    """The arguments of one forward, as they were before it ran. looked: a lookup was made in it, or none is due."""

    module: nn.Module | None
    ids: torch.Tensor | None
    mask: Any
    position_ids: torch.Tensor | None
    cache: Any
    past: int | torch.Tensor | None
    shape: torch.Size | None  # [B, T]
    known: Tokens | None = None
    sent: tuple[tuple[str, ...], Transfer] | None = None
    looked: bool = False

    def send(self) -> None:
        """Start what `_read` needs on its way to the host, where that is another place."""
        mask = self.full_mask()
        given: dict[str, Any] = {"ids": self.ids, "positions": self.position_ids, "past": self.past}
        if mask is not None and mask.ndim in (2, 4):
            given["mask"] = mask != 0 if mask.ndim == 2 else _of_square(mask, self.past)
        tensors = {name: one for name, one in given.items() if isinstance(one, torch.Tensor)}
        self.sent = tuple(tensors), Transfer(list(tensors.values()))

    def complete(self, outer: Call) -> None:
        """Add what the forward around it was told and did not pass on."""
        if self.ids is None:
            self.ids = outer.ids
        if self.cache is None:
            self.cache, self.past = outer.cache, outer.past
        if self.mask is None and self.position_ids is None:
            self.mask, self.position_ids = outer.mask, outer.position_ids

    def cached(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether it reads or makes a KV cache."""
        wanted = kwargs.get("use_cache")
        if wanted is None:
            wanted = getattr(getattr(self.module, "config", None), "use_cache", True)
        return self.cache is not None or bool(wanted)

    def is_away(self) -> bool:
        return any(isinstance(one, torch.Tensor) and on_gpu(one) for one in (self.ids, self.mask, self.past))

    def reads_as(self, outer: Call) -> bool:
        """Whether it was told the very same as the forward around it."""
        mine, theirs = ((one.ids, one.mask, one.position_ids, one.cache) for one in (self, outer))
        return all(a is b for a, b in zip(mine, theirs, strict=True))

    def _arrived(self) -> dict[str, np.ndarray]:
        if self.sent is None:
            self.send()
        assert self.sent is not None
        names, transfer = self.sent
        return dict(zip(names, transfer.arrays(), strict=True))

    def tokens(self, batch: int, length: int) -> Tokens:
        if self.known is None or self.known.positions.shape != (batch, length):
            self.known = self._read(batch, length)
        return self.known

    def before(self, length: int) -> int:
        """How many tokens went in before these `length`; a cache that cannot say leaves it to the mask's width."""
        if self.past is not None:
            return int(self._arrived()["past"]) if isinstance(self.past, torch.Tensor) else self.past
        return max(0, self.mask.shape[-1] - length) if isinstance(self.mask, torch.Tensor) else 0

    def full_mask(self) -> torch.Tensor | None:
        mask = self.mask
        if isinstance(mask, Mapping):  # one mask a kind of layer; the full one sees every token
            mask = mask.get("full_attention", next(iter(mask.values()), None))
        return mask if isinstance(mask, torch.Tensor) else None

    def _read(self, batch: int, length: int) -> Tokens:
        arrived = self._arrived()
        ids = _as_rows(arrived.get("ids"), batch, length)
        before = self.before(length)
        past, ends = recall(self.cache, batch, before), prompt_lengths(batch)
        mask = self.full_mask()
        found = None
        if mask is not None and mask.shape[0] in (1, batch):
            if mask.ndim == 2:
                found = _from_mask(arrived["mask"], before, length)
            elif mask.ndim == 4 and mask.shape[2] == length and before + length <= mask.shape[3]:
                found = arrived["mask"][0] != 0, arrived["mask"][1]
        if found is not None:
            real, positions = (np.broadcast_to(part, (batch, length)) for part in found)
            return Tokens(positions, None if real.all() else real, ids, True, past, ends)
        given = _as_rows(arrived.get("positions"), batch, length)  # also where texts are packed into one row
        if given is None:
            given = np.broadcast_to(before + np.arange(length), (batch, length))
        return Tokens(given, None, ids, True, past, ends)


def read(names: tuple[str, ...], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """names: of the forward's parameters."""
    given = {**dict(zip(names, args, strict=False)), **kwargs}  # of what is wrong the forward itself will tell
    ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
    shape = ids.shape if isinstance(ids, torch.Tensor) else None
    if isinstance(embeds, torch.Tensor):
        shape = embeds.shape[:2]
    return Call(
        module, ids, given.get("attention_mask"), given.get("position_ids"), given.get("past_key_values"),
        _past_length(given.get("past_key_values")), shape,
    )  # fmt: skip


def _past_length(cache: Any) -> int | torch.Tensor | None:
    """Tokens in the KV cache before this forward; None where it does not say (layers that keep no tokens)."""
    if hasattr(cache, "get_seq_length"):
        try:
            length: int | torch.Tensor = cache.get_seq_length()
        except ValueError:
            return None
        # A static cache counts on in this very tensor while the layers run.
        return length.clone() if isinstance(length, torch.Tensor) else length
    if isinstance(cache, tuple | list) and cache and cache[0] is not None:
        return int(cache[0][0].shape[-2])
    return 0


def _as_rows(values: np.ndarray | None, batch: int, length: int) -> np.ndarray | None:
    """int64 [batch, length], or None for anything of another shape."""
    if values is None or values.ndim not in (1, 2):
        return None
    rows = values.reshape(-1, values.shape[-1])
    if rows.shape[1] != length or len(rows) not in (1, batch):
        return None
    return np.broadcast_to(rows, (batch, length))


def _from_mask(real: np.ndarray, past: int, length: int) -> tuple[np.ndarray, np.ndarray] | None:
    """real and positions from a 2-D mask over cache and columns, or over the columns alone."""
    if real.shape[1] >= past + length:
        positions = real.cumsum(axis=1) - 1  # a static cache's mask may be longer than what is in use
        return real[:, past : past + length], positions[:, past : past + length]
    if real.shape[1] == length:
        return real, past + real.cumsum(axis=1) - 1
    return None


def _of_square(mask: torch.Tensor, past: int | torch.Tensor | None) -> torch.Tensor:
    """int64 [2, B, T], real and positions, from a 4-D mask [B, heads, T, K] as `generate` makes it for a static cache.

    A token is padding where it may not see itself, and stands behind as many tokens as it sees.
    """
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    before = max(0, mask.shape[3] - mask.shape[2]) if past is None else past
    own = (torch.arange(mask.shape[2], device=mask.device) + before).clamp(max=mask.shape[3] - 1)
    real = seen.gather(2, own.reshape(1, -1, 1).expand(len(seen), -1, 1))[:, :, 0]
    return torch.stack([real.long(), seen.sum(dim=2) - 1])
