"""What a model answers with a database attached, what without, and which facts made the difference."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from neuraldb_faiss.errors import FactError, ModelError
from neuraldb_faiss.models.generation import end_ids, greedy
from neuraldb_faiss.models.sites import input_device, unwrap
from neuraldb_faiss.models.tokenization import encode_prompt
from neuraldb_faiss.options import check_names

if TYPE_CHECKING:
    from neuraldb_faiss.database import NeuralDB
    from neuraldb_faiss.grounding.ground import Conversation
    from neuraldb_faiss.hook import Handle
    from neuraldb_faiss.hook.text_handle import TextHandle
    from neuraldb_faiss.store import StoredFact

NEW_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Fired:
    """An entry that fired: at which tokens of prompt and answer, its best cosine, the facts it serves."""

    entry: int
    positions: tuple[int, ...]
    score: float
    facts: tuple[StoredFact, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt continued greedily.

    Attributes:
        prompt: as given. edited: the continuation with the database attached. base: the one without, None
            where it was not asked for.
        fired: what fired, the strongest first.
        tokens, ids: of prompt and edited continuation, as texts and as numbers; positions of `fired` count them.
        new: how many of them are the continuation's.
        delivery: how the facts reached the model: "residual", "text" or "both".
        stated: the facts whose statements went into the prompt; `added`: the words that they went in with.
    """

    prompt: str
    edited: str
    base: str | None
    fired: tuple[Fired, ...]
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    new: int
    delivery: str = "residual"
    stated: tuple[StoredFact, ...] = ()
    added: str = ""


class AskOptions(TypedDict, total=False):
    """Named arguments of `ask`.

    Attributes:
        compare: whether to continue it without the database, too.
        chat: wrap the prompt in the tokenizer's chat template, as one message of the user.
        max_new_tokens: length of the continuation; NEW_TOKENS by default.
        delivery: how the facts are to reach the model, "residual" by default; None: as the attachment says.
    """

    compare: bool
    chat: bool
    max_new_tokens: int
    delivery: str | None


def ask(
    db: NeuralDB,
    handle: Handle | TextHandle,
    model: Any,
    tokenizer: Any,
    prompt: str,
    **options: Unpack[AskOptions],
) -> Answer:
    """Continue `prompt` greedily under `handle`, an attachment of `db` to `model`; clears the handle's trace.

    Args:
        options: compare, chat, max_new_tokens, delivery: see `AskOptions`.

    Raises:
        FactError: the prompt is empty. ModelError: `chat` where the tokenizer has no template.
    """
    check_names(options, AskOptions)
    if not prompt.strip():
        raise FactError("the prompt is empty: give a text to continue")
    asked: str | Conversation = [{"role": "user", "content": prompt}] if options.get("chat") else prompt
    how = handle.delivery_of(asked, options.get("delivery", "residual"))
    grounded = handle.ground(asked, delivery=how, tokenizer=tokenizer)
    ids, max_new_tokens = _encode(tokenizer, grounded.prompt), options.get("max_new_tokens", NEW_TOKENS)
    base = None
    if options.get("compare"):
        with handle.disabled():
            plain = _continue(model, tokenizer, _encode(tokenizer, asked), max_new_tokens)
        base = tokenizer.decode(plain, skip_special_tokens=True)
    handle.clear_trace()
    with handle.disabled() if how == "text" else nullcontext():
        new = _continue(model, tokenizer, ids, max_new_tokens)
    fired = fired_facts(db, handle.trace())
    tokens = tuple(tokenizer.decode([token]) for token in (*ids, *new))
    edited = tokenizer.decode(new, skip_special_tokens=True)
    return Answer(
        prompt, edited, base, fired, tokens, (*ids, *new), len(new), how, grounded.facts, grounded.text
    )  # fmt: skip


def _encode(tokenizer: Any, prompt: str | Conversation) -> list[int]:
    if isinstance(prompt, str):
        return encode_prompt(tokenizer, prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError("the model's tokenizer has no chat template: leave --chat out")
    text = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
    return encode_prompt(tokenizer, text, special=False)


def _continue(model: Any, tokenizer: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    rows = torch.tensor([ids], device=input_device(unwrap(model)))
    with torch.no_grad():
        out = model.generate(
            input_ids=rows,
            attention_mask=torch.ones_like(rows),
            **greedy(max_new_tokens, end_ids(model, tokenizer), tokenizer.pad_token_id),
        )
    return [int(token) for token in out[0, len(ids) :]]


def fired_facts(db: NeuralDB, trace: Iterable[Any]) -> tuple[Fired, ...]:
    """The entries that fired in a trace, the strongest first."""
    best: dict[int, tuple[float, list[int]]] = {}
    for fire in trace:
        score, positions = best.setdefault(fire.entry_id, (fire.score, []))
        positions.append(fire.position)
        best[fire.entry_id] = max(score, fire.score), positions
    found = [
        Fired(entry, tuple(sorted(set(positions))), float(score), tuple(db.facts(entry=entry)))
        for entry, (score, positions) in best.items()
    ]
    return tuple(sorted(found, key=lambda one: (-one.score, one.entry)))
