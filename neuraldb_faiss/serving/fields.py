"""Fields of a request that the server knows and does not support, with the values that ask for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuraldb_faiss.serving.errors import ApiError

# No value of these changes an answer.
HARMLESS = frozenset({
    "cache_salt", "metadata", "parallel_tool_calls", "priority", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "safety_identifier", "service_tier", "store", "user",
})  # fmt: skip

# These change the answer, but for null and the values here.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # OpenAI's
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
    # vLLM's and others'
    "add_generation_prompt": (True,),
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "chat_template": (),
    "continue_final_message": (False,),
    "do_sample": (),
    "documents": ([],),
    "early_stopping": (False,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "ignore_eos": (False,),
    "include_reasoning": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "mirostat": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repeat_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": ({},),
    "top_a": (0,),
    "top_h": (),
    "truncate_prompt_tokens": (-1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "vllm_xargs": ({},),
}


def check_extra(given: Mapping[str, Any]) -> None:
    """Raises ApiError for a field, not one that is supported, that would silently be answered otherwise than asked."""
    for name, value in given.items():
        if value is None or name in HARMLESS:
            continue
        if name not in NEUTRAL:
            raise ApiError(
                400, f"{name[:100]} is no field that this server knows: leave it out", param=name[:100],
                code="unknown_parameter",
            )  # fmt: skip
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in NEUTRAL[name]):
            raise ApiError(400, f"{name} is not supported: leave it out", param=name, code="unsupported_parameter")
