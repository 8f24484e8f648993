"""Texts the model itself writes, put in front of a prompt so that a key and a residual hold in context.

Equation 20 averages over N such prefixes; the reference code of the locate-and-edit methods makes them from
five short seeds. They are sampled with a generator of their own, so that neither the global random state
nor the device changes them, and a database stores them: without them no build could be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from neuraldb_faiss.errors import BuildError, FactError
from neuraldb_faiss.facts.fact import MARK, Fact
from neuraldb_faiss.models.interventions import frozen
from neuraldb_faiss.models.sites import input_device
from neuraldb_faiss.models.tokenization import encode_prompts

SEEDS: tuple[str, ...] = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5
SIGNS = (". ", ": ", "\n")


def contexts(fact: Fact, prefixes: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """A fact's prompt, raw and then as "prefix. prompt" for each prefix, with its subject's span."""
    (start, end), text = fact.subject_span, fact.text
    places = [(text, (start, end))]
    for prefix in prefixes:
        shift = len(prefix) + 2
        places.append((f"{prefix}. {text}", (start + shift, end + shift)))
    return places


def leading(fact: Fact) -> list[Fact]:
    """The fact as texts that begin with its subject, the rest of its prompt behind some sign; none where the prompt
    begins so itself, or where that cannot be said.

    "The capital of Japan is" becomes "Japan. The capital of is", and so on: no sentence, but the subject stands at the
    text's beginning and nowhere else, and what is asked about it is there.
    """
    (start, end), text = fact.subject_span, fact.text
    rest = " ".join((text[:start].strip() + " " + text[end:].strip()).split())
    if not text[:start].strip():
        return []
    try:
        return [Fact(fact.subject, f"{MARK}{sign}{rest}", fact.target) for sign in SIGNS]
    except FactError:  # the rest, put together, names the subject
        return []


def generate_prefixes(model: Any, tokenizer: Any, *, seed: int = 0, length: int = 10) -> tuple[str, ...]:
    """Five prefixes of `length` sampled tokens each (top-k 5), one from each of `SEEDS`.

    The same model, seed and length give the same prefixes. Braces become spaces (a prompt template has its
    own), white space is folded, and special tokens are never sampled, so that no text ends early. Raises
    BuildError where the model's logits are not finite.
    """
    device = input_device(model)
    texts = encode_prompts(tokenizer, SEEDS)
    heads = [len(ids) for ids in texts]
    banned = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(length):
        width = max(len(ids) for ids in texts)
        input_ids = torch.zeros(len(texts), width, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(texts):
            input_ids[row, : len(ids)] = torch.tensor(ids)
            mask[row, : len(ids)] = 1
        with torch.no_grad(), frozen(model):  # dropout would make other prefixes each time
            logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        ends = torch.tensor([len(ids) - 1 for ids in texts], device=logits.device)
        last = logits[torch.arange(len(texts), device=logits.device), ends].float().cpu()
        if last.isnan().any() or last.isposinf().any():
            raise BuildError("the model's logits are not finite: try --dtype float32, or mend its weights")
        last = last.index_fill(1, banned[banned < last.shape[1]], float("-inf"))
        best, tokens = last.topk(min(TOP_K, last.shape[1]), dim=1)
        choice = torch.multinomial(best.softmax(dim=1), 1, generator=generator)
        for ids, token in zip(texts, tokens.gather(1, choice)[:, 0].tolist(), strict=True):
            ids.append(token)
    special = set(tokenizer.all_special_ids)
    return tuple(
        _clean(tokenizer.decode([t for t in ids[:head] if t not in special] + ids[head:]))
        for ids, head in zip(texts, heads, strict=True)
    )


def _clean(text: str) -> str:
    return " ".join(text.replace("{", " ").replace("}", " ").split())
