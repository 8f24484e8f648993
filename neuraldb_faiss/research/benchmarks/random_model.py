"""A language model of a given shape with random weights, a tokenizer for it, and facts in memory: for times alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import numpy as np
import torch

from neuraldb_faiss.store.fact_filter import RowFilter
from neuraldb_faiss.store.records import StoredFact

PIECE = 8192  # keys made at once
SHAPES: dict[str, dict[str, int]] = {
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192,
    },
    "small": {
        "hidden_size": 64, "intermediate_size": 224, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 512,
    },
}  # fmt: skip


def random_llama(shape: str, device: torch.device, *, layers: int | None = None) -> Any:
    """A LlamaForCausalLM of SHAPES[shape], bfloat16 on a GPU and float32 else; layers: fewer than it has."""
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = {**SHAPES[shape], **({} if layers is None else {"num_hidden_layers": layers})}
    config = AutoConfig.for_model("llama", **wanted, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def words(size: int) -> Any:
    """A fast tokenizer of `size` words, w0, w1, ..."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({f"Ġw{number}": number for number in range(size)}, unk_token="Ġw0"))
    whole_words = pre_tokenizers.Split(Regex(" ?[^ ]+"), "isolated")  # ByteLevel's own pattern parts w from its number
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([whole_words, byte_level])
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="Ġw0", eos_token="Ġw0", pad_token="Ġw0")


class MemorySource:
    """A snapshot of `n` facts with one key each, random but for those that are given.

    keys: float [m, d1] and names [m] of the first entries. The others are named with words that no text has. Keys are
    float16 of unit length; residuals repeat after a while, because only reading them costs time.
    """

    def __init__(self, n: int, d1: int, d2: int, keys: torch.Tensor, names: list[str], device: torch.device) -> None:
        self.d1, self.d2, self.epoch, self.generation, self.n_keys = d1, d2, 1, 1, n
        self.lineage = self.epoch
        self.key_entries, self.key_tokens = np.arange(n), np.full(n, -1, np.int32)
        self.live = np.ones(n, bool)
        self.floors: Mapping[str, float] = {}
        self.search_folder = None
        self._given = names
        self._keys = np.empty((n, d1), np.float16)
        chance = torch.Generator(device).manual_seed(1)
        for first in range(0, n, PIECE):
            rows = torch.randn((min(PIECE, n - first), d1), generator=chance, device=device)
            if first == 0:
                rows[: len(keys)] = keys.to(rows)
            rows /= rows.norm(dim=1, keepdim=True)
            self._keys[first : first + len(rows)] = rows.half().cpu().numpy()
        self._residuals = 0.01 * np.random.default_rng(0).standard_normal((1024, d2), np.float32)

    def key_blocks(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        for first in range(start, self.n_keys, PIECE):
            yield first, self._keys[first : first + PIECE]

    def keys(self, positions: np.ndarray) -> np.ndarray:
        return self._keys[positions]

    def residuals(self, entry_ids: np.ndarray) -> np.ndarray:
        return self._residuals[entry_ids % len(self._residuals)]

    def fact_ids(self, entry_id: int) -> tuple[str, ...]:
        return (f"fact{entry_id}",)

    def facts(self, **where: Unpack[RowFilter]) -> Iterator[StoredFact]:
        """None: whatever a text asks for, its entries fire."""
        return iter(())

    def stamp_of(self, generation: int) -> str | None:
        return None

    def names(self, entry_id: int) -> tuple[str, ...]:
        return (self._given[entry_id] if entry_id < len(self._given) else f"Subject {entry_id}",)

    def subject_names(self, after: int = -1) -> Iterator[tuple[int, int, str]]:
        if after < self.generation:
            yield from ((entry, entry, self.names(entry)[0]) for entry in range(self.n_keys))
