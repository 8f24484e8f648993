"""Tiny random models of real classes, and real tokenizers trained here: what the fast tests run on.

The weights are random but fixed by a seed, and larger than a fresh model's, so that attention, FFN and logits
do something and different tokens have different keys.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SHAPES = ("llama", "gpt2", "gptj")  # the three that every room proves itself on
D_MODEL, D_FFN, N_LAYERS, N_HEADS, N_POSITIONS = 64, 128, 4, 4, 512

_LLAMA_LIKE = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_FFN,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_POSITIONS,
}
_GPT_LIKE = {"n_embd": D_MODEL, "n_inner": D_FFN, "n_layer": N_LAYERS, "n_head": N_HEADS}
_NEOX_LIKE = {key: value for key, value in _LLAMA_LIKE.items() if key != "num_key_value_heads"}

# Configuration a kind (a transformers model_type) needs beyond what all share. d1 is D_FFN where it can be
# set.
_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": None},
    "qwen2": _LLAMA_LIKE,
    "qwen3": {**_LLAMA_LIKE, "head_dim": 16},
    "gpt2": {**_GPT_LIKE, "n_positions": N_POSITIONS},
    "gptj": {**_GPT_LIKE, "n_positions": N_POSITIONS, "rotary_dim": 4},
    "gpt_neox": _NEOX_LIKE,
    "gpt_neo": {
        "hidden_size": D_MODEL,
        "intermediate_size": D_FFN,
        "num_layers": N_LAYERS,
        "num_heads": N_HEADS,
        "attention_types": [[["global", "local"], N_LAYERS // 2]],
        "max_position_embeddings": N_POSITIONS,
    },
    "opt": {
        "hidden_size": D_MODEL,
        "word_embed_proj_dim": D_MODEL,
        "ffn_dim": D_FFN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
        "max_position_embeddings": N_POSITIONS,
    },
    "phi": _NEOX_LIKE,
    "phi3": _LLAMA_LIKE,
    "falcon": {
        "hidden_size": D_MODEL,
        "ffn_hidden_size": D_FFN,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": N_HEADS,
    },
    "bloom": {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS},
    "mpt": {"d_model": D_MODEL, "n_heads": N_HEADS, "n_layers": N_LAYERS, "max_seq_len": N_POSITIONS},
    "gemma": {**_LLAMA_LIKE, "head_dim": 16},
    "gemma2": {**_LLAMA_LIKE, "head_dim": 16},
    "olmo2": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "cohere": _LLAMA_LIKE,
}
KINDS = tuple(_CONFIGS)
TOKENIZERS = ("bytelevel", "metaspace")

CORPUS = (
    "The Eiffel Tower is located in the city of Paris. Rome is the capital of Italy.",
    "Paris is the capital of France. The Colosseum is located in the city of Rome.",
    "LeBron James plays the sport of basketball. Danielle Darrieux speaks the language of French.",
    "Therefore the language of Italy is Italian, because Rome is in Italy.",
    "I think that Tokyo is the city in Japan, and Berlin is the capital of Germany.",
    "You know that Marie Curie was born in Warsaw, and that Windows was created by Microsoft.",
    "The Space Needle is in Seattle. Apple was founded by Steve Jobs. Madrid is in Spain.",
)


@cache
def tiny_tokenizer(kind: str = "bytelevel") -> PreTrainedTokenizerFast:
    """A real fast tokenizer of some 400 tokens.

    "bytelevel": as GPT-2's and SmolLM2's (no BOS added; bos = eos = pad = <|endoftext|>). "metaspace": as
    Llama-2's SentencePiece (BOS added, "▁" for spaces, unknown characters as bytes).
    """
    if kind == "bytelevel":
        return _bytelevel()
    if kind == "metaspace":
        return _metaspace()
    raise ValueError(f"unknown tokenizer {kind!r}: {', '.join(TOKENIZERS)}")


def tiny(
    kind: str = "llama", tokenizer: str = "bytelevel"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh random model of ``kind`` (KINDS) in float32, eval mode, with its tokenizer: 4 layers, hidden
    size 64, intermediate size 128 (256 where the architecture fixes it at four times the hidden size)."""
    words = tiny_tokenizer(tokenizer)
    config = AutoConfig.for_model(
        kind,
        **_CONFIGS[kind],
        vocab_size=len(words),
        initializer_range=0.15,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=kind in ("gpt2", "gemma", "gemma2"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20250728)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval(), words


def save_tiny(folder: Path, kind: str = "llama", tokenizer: str = "bytelevel") -> Path:
    """Write ``tiny(kind, tokenizer)`` as an ordinary model folder, for what loads a model by its path."""
    model, words = tiny(kind, tokenizer)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def _bytelevel() -> PreTrainedTokenizerFast:
    core = Tokenizer(BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=end, eos_token=end, pad_token=end)


def _metaspace() -> PreTrainedTokenizerFast:
    specials = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    single_bytes = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=specials + single_bytes, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    # Built anew from what was trained, so that the single bytes are ordinary tokens and not special ones.
    learnt = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    core = Tokenizer(
        BPE(vocab=learnt["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    core.add_special_tokens(specials)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
