"""A tiny model with facts at chosen tokens, and what it says with them by a plain reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from helpers.fake_snapshot import FakeSnapshot
from neuraldb_faiss.guard.none import PlainGate
from neuraldb_faiss.hook import Handle, attach
from neuraldb_faiss.index import Matcher
from neuraldb_faiss.models import find_site

TEXTS = (
    "Rome is the capital of Italy.",
    "I think that the Eiffel Tower is located in the city of Paris, and Berlin is in Germany.",
    "LeBron James plays",
    "You know that Marie Curie was born in Warsaw.",
)
LAYER = 1
GAMMA = 0.9
Triple = tuple[int, int, int]  # text, position, entry


class Case:
    """A model with facts at three later tokens of the texts and at the first token of text 0."""

    def __init__(self, model: Any, words: Any, layer: int = LAYER, seed: int = 0) -> None:
        self.model, self.words, self.site = model, words, find_site(model, layer)
        self.ids = [words(text).input_ids for text in TEXTS]
        self.inputs = [self.plain_keys(ids) for ids in self.ids]
        places = [(0, 0), (0, 4), (1, 7), (3, 5)]
        keys = np.stack([self.inputs[text][position] for text, position in places])
        tokens = [self.ids[0][0], -1, -1, -1]
        residuals = np.random.default_rng(seed).standard_normal((len(places), self.site.d2)) * 3
        # A key a little off its token's, as a mean over prefixes is.
        keys = np.concatenate([keys, keys[1:2] + 0.2 * keys[1:2, ::-1]])
        self.snapshot = FakeSnapshot(keys, residuals, tokens=[*tokens, -1], entries=[0, 1, 2, 3, 1])

    def plain_keys(self, ids: Sequence[int]) -> np.ndarray:
        seen: list[torch.Tensor] = []
        hook = self.site.module.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
        with torch.no_grad():
            self.model(torch.tensor([ids]))
        hook.remove()
        return seen[0][0].double().numpy()

    def matcher(self, **options: Any) -> Matcher:
        return Matcher(self.snapshot, gamma=GAMMA, **options)

    def attach(self, **options: Any) -> Handle:
        return attach(PlainGate(self.matcher()), self.model, site=self.site, **options)

    def reference(self, ids: Sequence[int]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Logits [T, V] and (position, entry) of what fires in one text, by the formulas, no code of ours."""
        fires: list[tuple[int, int]] = []

        def hook(_module: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            output, keys = output.clone(), self.snapshot.stored.astype(np.float64)
            fires.clear()
            for t, key in enumerate(args[0][0].double().numpy()):
                cosines = keys @ key / np.linalg.norm(keys, axis=1) / np.linalg.norm(key)
                cosines[self.snapshot.key_tokens != (ids[t] if t == 0 else -1)] = -1
                if cosines.max() > GAMMA:
                    entry = int(self.snapshot.key_entries[cosines.argmax()])
                    output[0, t] += torch.from_numpy(self.snapshot.table[entry])
                    fires.append((t, entry))
            return output

        registered = self.site.module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                return self.model(torch.tensor([ids]), use_cache=False).logits[0], fires
        finally:
            registered.remove()

    def references(self) -> tuple[list[torch.Tensor], list[Triple]]:
        found = [self.reference(ids) for ids in self.ids]
        fires = [(i, *fire) for i, (_, fires) in enumerate(found) for fire in fires]
        return [logits for logits, _ in found], fires

    def padded(self, side: str) -> dict[str, torch.Tensor]:
        width = max(map(len, self.ids)) + 2
        # The padding token is a text's first token too: padding must not count even where ids look right.
        pad = self.ids[0][0]
        rows, masks = [], []
        for ids in self.ids:
            gap, ones = [pad] * (width - len(ids)), [1] * len(ids)
            rows.append(ids + gap if side == "right" else gap + ids)
            masks.append(ones + [0] * len(gap) if side == "right" else [0] * len(gap) + ones)
        return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def triples(handle: Handle) -> list[Triple]:
    return sorted((fire.sequence, fire.position, fire.entry_id) for fire in handle.trace())


def numbered_positions(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def hooks(model: nn.Module) -> int:
    """Hooks, and forwards put over the class's own, in the whole model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in model.modules())
