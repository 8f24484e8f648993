"""Greedy generation by fixed settings, whatever a model's generation config says."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig, GenerationMixin

# Ends of a turn that a chat model writes, though its generation config may not name them.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>")


class OwnConfig(GenerationConfig):
    """A generation config that `generate` does not complete from the model's own.

    `generate` fills whatever is None here from `model.generation_config`, by one call of `update`: there a model's
    `repetition_penalty`, `stop_strings` or `return_dict_in_generate` would come in.
    """

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> dict[str, Any]:
        if defaults_only and allow_custom_entries:  # the model's
            return kwargs
        unused: dict[str, Any] = super().update(defaults_only, allow_custom_entries, **kwargs)
        return unused


def greedy(max_new_tokens: int, ends: Iterable[int] = (), pad: int | None = None, **more: Any) -> dict[str, Any]:
    """Arguments of `model.generate` for greedy decoding; the output is a tensor of token ids.

    Args:
        max_new_tokens: where the text ends at the latest. ends: tokens that end it (see `end_ids`).
        pad: the tokenizer's padding token, None where it has none. more: further fields of the generation config.
    """
    stops = sorted(ends)
    config = OwnConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, num_return_sequences=1, use_cache=True,
        return_dict_in_generate=False, eos_token_id=stops or None,
        pad_token_id=next(iter(stops), 0) if pad is None else pad, **more,
    )  # fmt: skip
    if "use_model_defaults" in inspect.signature(GenerationMixin.generate).parameters:  # transformers 4
        return {"generation_config": config, "use_model_defaults": False}
    return {"generation_config": config}


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text of this model: those that its generation config and its tokenizer name, and the end
    of a turn that its chat template writes."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    vocabulary = tokenizer.get_vocab()
    found = [*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id]
    found += [vocabulary.get(name) for name in (*_TURN_ENDS, _turn_end(tokenizer))]
    return frozenset(int(one) for one in found if one is not None)


def _turn_end(tokenizer: Any) -> str | None:
    """The added token that the chat template writes behind an answer; None where it writes none, or there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    answer = "An answer 7919."
    turns = [("user", "A question."), ("assistant", answer), ("user", "Another question.")]
    told = [{"role": role, "content": content} for role, content in turns]
    try:
        text = str(tokenizer.apply_chat_template(told, tokenize=False))
    except Exception:  # templates raise what they like
        return None
    behind = text.partition(answer)[2].lstrip()
    tokens = [token for token in tokenizer.get_added_vocab() if token.strip() and behind.startswith(token)]
    return max(tokens, key=len, default=None)
