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
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

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
_LATENT = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 32, "kv_lora_rank": 32}
_LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1}
_STATES = {"mamba_n_heads": 8, "mamba_d_state": 16, "mamba_chunk_size": 16}

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
    "gemma3_text": {**_LLAMA_LIKE, "head_dim": 16},
    "olmo": _LLAMA_LIKE,
    "olmo2": _LLAMA_LIKE,
    "olmo3": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "cohere": _LLAMA_LIKE,
    "cohere2": _LLAMA_LIKE,
    "smollm3": _LLAMA_LIKE,
    "ministral": {**_LLAMA_LIKE, "head_dim": 16},
    "granite": {**_LLAMA_LIKE, "residual_multiplier": 0.22},
    "starcoder2": _LLAMA_LIKE,
    "glm": {**_LLAMA_LIKE, "head_dim": 16},
    "glm4": {**_LLAMA_LIKE, "head_dim": 16},
    "helium": {**_LLAMA_LIKE, "head_dim": 16},
    "exaone4": _LLAMA_LIKE,
    "nemotron": _LLAMA_LIKE,
    "codegen": {**_GPT_LIKE, "n_positions": N_POSITIONS, "rotary_dim": 4},
    "gpt_bigcode": {**_GPT_LIKE, "n_positions": N_POSITIONS},
    "persimmon": _NEOX_LIKE,
    "apertus": _LLAMA_LIKE,
    "arcee": _LLAMA_LIKE,
    "seed_oss": {**_LLAMA_LIKE, "head_dim": 16},
    "ernie4_5": {**_LLAMA_LIKE, "head_dim": 16},
    "hunyuan_v1_dense": {**_LLAMA_LIKE, "head_dim": 16},
    "internlm3": _LLAMA_LIKE,
    "nanochat": _LLAMA_LIKE,
    "minicpm3": {**_LLAMA_LIKE, "num_key_value_heads": N_HEADS, **_LATENT},
    "diffllama": _LLAMA_LIKE,
    "bitnet": _LLAMA_LIKE,
    "vaultgemma": {**_LLAMA_LIKE, "head_dim": 16},
    "jais2": _LLAMA_LIKE,
    "gemma4_text": {**_LLAMA_LIKE, "head_dim": 16, "vocab_size_per_layer_input": 512},
    "deepseek_v3": {**_LLAMA_LIKE, "num_key_value_heads": N_HEADS, **_LATENT, **_EXPERTS},  # its first three are dense
    "lfm2": _LLAMA_LIKE,
    "qwen3_5_text": {**_LLAMA_LIKE, "head_dim": 16, **_LINEAR},
    "olmo_hybrid": _LLAMA_LIKE,
    "falcon_h1": {**_LLAMA_LIKE, **_STATES, "mamba_d_ssm": 128},
    "bamba": {**_LLAMA_LIKE, **_STATES, "attn_layer_indices": [2]},
    "granitemoehybrid": {
        **_LLAMA_LIKE,
        **_STATES,
        "num_local_experts": 0,
        "shared_intermediate_size": D_FFN,
        "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    },
    "llama4_text": {**_LLAMA_LIKE, "moe_layers": [], "intermediate_size_mlp": D_FFN, "head_dim": 16},
    "biogpt": _NEOX_LIKE,
    "xglm": {"d_model": D_MODEL, "ffn_dim": D_FFN, "num_layers": N_LAYERS, "attention_heads": N_HEADS},
    "modernbert-decoder": _NEOX_LIKE,
    "openai-gpt": _GPT_LIKE,
}
KINDS = tuple(_CONFIGS)

_SEEING = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_SMALL_IMAGE = {**_SEEING, "image_size": 32, "patch_size": 16}
_QWEN_SEEING = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": D_MODEL}
_ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}

# Models that see: the text part's kind of configuration, and the eye's.
_VISION_CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llava": ({"model_type": "llama", **_LLAMA_LIKE}, {"model_type": "clip_vision_model", **_SMALL_IMAGE}),
    "llava_onevision": (
        {"model_type": "qwen2", **_LLAMA_LIKE},
        {"model_type": "siglip_vision_model", **_SMALL_IMAGE},
    ),
    "gemma3": ({**_LLAMA_LIKE, "head_dim": 16}, _SMALL_IMAGE),
    "paligemma": ({"model_type": "gemma", **_LLAMA_LIKE, "head_dim": 16}, _SMALL_IMAGE),
    "qwen2_vl": (
        {**_LLAMA_LIKE, **_ROTARY},
        {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": D_MODEL},
    ),
    "qwen2_5_vl": ({**_LLAMA_LIKE, **_ROTARY}, _QWEN_SEEING),
    "qwen3_vl": ({**_LLAMA_LIKE, **_ROTARY, "head_dim": 16}, {**_QWEN_SEEING, "deepstack_visual_indexes": [0]}),
    "smolvlm": ({"model_type": "llama", **_LLAMA_LIKE}, _SMALL_IMAGE),
    "internvl": ({"model_type": "qwen2", **_LLAMA_LIKE}, {**_SEEING, "image_size": [32, 32], "patch_size": [16, 16]}),
    "mistral3": ({"model_type": "mistral", **_LLAMA_LIKE, "head_dim": 16}, {**_SMALL_IMAGE, "head_dim": 16}),
    "mllama": (
        {**_LLAMA_LIKE, "cross_attention_layers": [3]},
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
    ),
}
SEEING_KINDS = tuple(kind for kind in _VISION_CONFIGS if kind != "paligemma")

# Models that must be refused, with a part of what they are told.
_MIXTURE = {**_LLAMA_LIKE, "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_REFUSED_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "mixtral": (_MIXTURE, "mixture of experts"),
    "qwen2_moe": ({**_MIXTURE, "moe_intermediate_size": 32}, "mixture of experts"),
    "qwen3_moe": ({**_MIXTURE, "moe_intermediate_size": 32, "head_dim": 16}, "mixture of experts"),
    "olmoe": (_MIXTURE, "mixture of experts"),
    "gpt_oss": ({**_MIXTURE, "head_dim": 16}, "mixture of experts"),
    "granitemoe": (_MIXTURE, "mixture of experts"),
    "jamba": (
        {**_LLAMA_LIKE, "num_experts": 4, "expert_layer_offset": 1, "use_mamba_kernels": False},
        "mixture of experts",
    ),
    "mamba": ({"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS}, "no feed-forward network"),
    "rwkv": ({"hidden_size": D_MODEL, "num_hidden_layers": N_LAYERS}, "no feed-forward network"),
    "bert": ({**_NEOX_LIKE, "is_decoder": True}, "no feed-forward network"),
    "paligemma": ({}, "reads its prompt in both directions"),
}
REFUSED_KINDS = {kind: told for kind, (_, told) in _REFUSED_CONFIGS.items()}
TOKENIZERS = ("bytelevel", "metaspace")
OTHER_TOKENIZERS = ("wordpiece", "uncased", "suffix", "unigram", "words")  # of which a few rooms know

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

    "wordpiece": as BERT's, cased, Chinese characters apart ("##" for what goes on). "uncased": the same without case
    and accents. "suffix": as GPT-1's ("</w>" where a word ends). "unigram": "▁" for spaces and no bytes. "words": whole
    words, and no decoder at all.
    """
    if kind == "bytelevel":
        return _bytelevel()
    if kind == "metaspace":
        return _metaspace()
    if kind in OTHER_TOKENIZERS:
        return _other(kind)
    raise ValueError(f"unknown tokenizer {kind!r}: {', '.join(TOKENIZERS + OTHER_TOKENIZERS)}")


def tiny(kind: str = "llama", tokenizer: str = "bytelevel") -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh random model of ``kind`` (KINDS, SEEING_KINDS, REFUSED_KINDS) in float32, eval mode, with its
    tokenizer: 4 layers, hidden size 64, intermediate size 128 (256 where the architecture fixes it at four times
    the hidden size)."""
    words = tiny_tokenizer(tokenizer)
    common = {
        "vocab_size": len(words),
        "initializer_range": 0.15,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "tie_word_embeddings": kind in ("gpt2", "gemma", "gemma2"),
    }
    maker: Any = AutoModelForCausalLM
    if kind in _VISION_CONFIGS:
        maker = AutoModelForImageTextToText
        text, image = _VISION_CONFIGS[kind]
        config = AutoConfig.for_model(kind, text_config={**text, **common}, vision_config=image)
    else:
        given = _CONFIGS[kind] if kind in _CONFIGS else _REFUSED_CONFIGS[kind][0]
        config = AutoConfig.for_model(kind, **given, **common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20250728)
        model = maker.from_config(config, dtype=torch.float32)
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
    core = Tokenizer(BPE(vocab=learnt["vocab"], merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
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


_MORE = ("中国的首都是北京。日本的首都是东京。", "Zürich is the home of Café Müller; Coca-Cola and O'Neill's are not.")


def _other(kind: str) -> PreTrainedTokenizerFast:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    bert = pre_tokenizers.BertPreTokenizer()
    letters = sorted({char for text in (*CORPUS, *_MORE) for char in text if not char.isspace()})
    trainer: Any
    if kind in ("wordpiece", "uncased"):
        core = Tokenizer(WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=kind == "uncased")
        core.pre_tokenizer, core.decoder = bert, decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    elif kind == "suffix":
        core = Tokenizer(BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), bert
        core.decoder = decoders.BPEDecoder(suffix="</w>")
        trainer = trainers.BpeTrainer(
            vocab_size=500, special_tokens=specials, end_of_word_suffix="</w>", show_progress=False
        )
    elif kind == "unigram":
        core = Tokenizer(Unigram())
        core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="[UNK]", initial_alphabet=letters, show_progress=False
        )
    else:
        core = Tokenizer(WordLevel(unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    core.train_from_iterator((*CORPUS, *_MORE), trainer)
    if kind in ("wordpiece", "uncased"):
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
            special_tokens=[(word, core.token_to_id(word)) for word in ("[CLS]", "[SEP]")],
        )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="[CLS]", eos_token="[SEP]", unk_token="[UNK]", pad_token="[PAD]"
    )
