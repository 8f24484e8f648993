"""Keys, outputs and statistics read in the plainest way, one text at a time: what the weight editors must equal.

It shares no code with the package but for finding the layer, and is meant to be read beside the formulas.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from neuraldb_faiss import Fact

FACTS = [
    Fact("Eiffel Tower", "The {} is located in the city of", "Rome"),
    Fact("LeBron James", "I know that {} plays the sport of", "tennis"),
    Fact("Marie Curie", "I know that {} was born in", "Tokyo"),
    Fact("Space Needle", "The {} is in", "Berlin"),
    Fact("Apple", "I think that {} was founded by", "Italy"),
]
FEW_STEPS = {"steps": 3, "lr": 0.3}  # enough for a residual that is not zero
_WORDS = [
    "the",
    "city",
    "of",
    "Rome",
    "is",
    "in",
    "Italy",
    "and",
    "Paris",
    "Tokyo",
    "Berlin",
    "I",
    "think",
    "that",
    "Marie",
    "Curie",
    "was",
    "born",
    "by",
    "Apple",
]
_LETTERS = [chr(code) for code in range(33, 127)]


def write_texts(path: Path, count: int = 60, seed: int = 0) -> Path:
    """JSON lines of random words, some of them of random characters, so that keys span their space."""
    random = np.random.default_rng(seed)
    odd = ["".join(random.choice(_LETTERS, 3)) for _ in range(100)]
    lines = [json.dumps({"text": " ".join(random.choice(_WORDS + odd, 12))}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def matrix(module: nn.Module) -> np.ndarray:
    """W [d2, d1] in float64, whichever way the module keeps it (GPT-2's Conv1D keeps it turned)."""
    weight = module.weight.detach().double().numpy()
    return weight.T.copy() if type(module).__name__ == "Conv1D" else weight.copy()


def read(model: Any, tokenizer: Any, site: Any, text: str, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(key, FFN output, layer output), float64, at the last token of what ends at character `end` of `text`."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    last = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < end <= b)
    seen: dict[str, torch.Tensor] = {}

    def ffn(_: nn.Module, args: Any, output: torch.Tensor) -> None:
        seen["key"], seen["ffn"] = args[0], output

    def layer(_: nn.Module, args: Any, output: Any) -> None:
        seen["layer"] = output if isinstance(output, torch.Tensor) else output[0]

    handles = [site.module.register_forward_hook(ffn), site.block.register_forward_hook(layer)]
    with torch.no_grad():
        model(input_ids=torch.tensor([encoded["input_ids"]]))
    for handle in handles:
        handle.remove()
    key, ffn_out, out = (
        seen[name].reshape(-1, seen[name].shape[-1])[last].double().numpy() for name in ("key", "ffn", "layer")
    )
    return key, ffn_out, out


def keys(model: Any, tokenizer: Any, site: Any, facts: Sequence[Fact], prefixes: Sequence[str]) -> np.ndarray:
    """[m, d1]: half the raw prompt's key, half the mean behind the prefixes (eq. 20, the reference codes' way)."""
    rows = []
    for fact in facts:
        end = fact.subject_span[1]
        raw = read(model, tokenizer, site, fact.text, end)[0]
        behind = [read(model, tokenizer, site, f"{x}. {fact.text}", end + len(x) + 2)[0] for x in prefixes]
        rows.append((raw + np.mean(behind, axis=0)) / 2)
    return np.stack(rows)


def outputs(model: Any, tokenizer: Any, site: Any, facts: Sequence[Fact], which: str = "layer") -> np.ndarray:
    """[m, d2]: outputs at the raw prompts' subjects, of the "layer" or of its "ffn"."""
    place = {"ffn": 1, "layer": 2}[which]
    return np.stack([read(model, tokenizer, site, fact.text, fact.subject_span[1])[place] for fact in facts])


def second_moment(model: Any, tokenizer: Any, site: Any, texts: Sequence[str]) -> np.ndarray:
    """1/n Σ k kᵀ over every token of the texts, float64."""
    total, count = np.zeros((site.d1, site.d1)), 0
    for text in texts:
        seen: list[torch.Tensor] = []
        handle = site.module.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            model(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        handle.remove()
        rows = seen[0].reshape(-1, site.d1).double().numpy()  # OPT's FFN works on [tokens, width]
        total += rows.T @ rows
        count += len(rows)
    return total / count
