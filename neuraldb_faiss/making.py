"""What makes a database: `build` from facts, `merge` from databases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.facts import Fact, fold
from neuraldb_faiss.store import Store

if TYPE_CHECKING:  # torch, transformers and faiss load only when they are used
    from neuraldb_faiss.edits.pipeline import Report


def build(
    facts: Iterable[Fact],
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    layer: int | None = None,
    residual: str = "memit",
    keys: str = "two",
    guard: str = "subject",
    gamma: float | None = None,
    ffn_module: str | None = None,
    seed: int = 0,
    on_conflict: str = "error",
    drop_failed: bool = False,
    report: Report | None = None,
    command: str = "build",
    index: Mapping[str, Any] | None = None,
    **overrides: float | None,
) -> NeuralDB:
    """Build a database of `facts` for `model` in the new folder `path`; killed, the same call resumes.

    Args:
        layer: the FFN to edit; a known model's default else (`edit_defaults`).
        residual: "memit" (eq. 21), "pmet" (its objective has a second vector, at the attention, that is not
            kept), or "none" (zeros: for measuring gates and lookups).
        keys: "two" a fact (raw, and mean behind prefixes), or the "paper"'s one average (eq. 20).
        guard: "subject" (a fact fires only where the text ends with its subject), "whole-words" (and no word goes on
            there, as far as the prompt tells), or "none" (the paper's plain gate).
        gamma: the gate; the guard's own default.
        ffn_module: the down-projection's name with {} for the layer, where it is not found by itself.
        seed: of the context prefixes.
        on_conflict: "error", "first" or "last" where two targets are given for one subject and prompt.
        drop_failed: leave out facts whose target is not the arg-max after solving.
        report: called with a `Progress` after every staged piece.
        command: what the history calls this.
        index: how the keys are searched: kind ("flat" by default, "ivf" or "sketch"), and for ivf nlist and nprobe.
        overrides: steps, max_steps, lr, weight_decay, clamp, kl_factor, stop_loss, kl_prompts, chat of the residual's
            objective (`ResidualConfig`).

    Raises:
        NeuralDBError: its subclass and message say what is wrong.
    """
    from neuraldb_faiss.edits import changes
    from neuraldb_faiss.solver.editor import Editor

    folded = fold(facts, on_conflict)
    editor = Editor.new(
        model, tokenizer, layer=layer, residual=residual, keys=keys, guard=guard, gamma=gamma, ffn_module=ffn_module,
        seed=seed,
        **overrides,
    )  # fmt: skip
    store = changes.build(
        folded.facts, editor, path, drop_failed=drop_failed, report=report, command=command, index=index
    )
    return NeuralDB(store)


def guessed_layer(model: Any, ffn_module: str | None = None) -> str | None:
    """What to tell somebody who names no layer, where the model's best one is not known."""
    from neuraldb_faiss.models import edit_defaults, layer_count

    defaults, known = edit_defaults(model, ffn_module)
    if known:
        return None
    return (
        f"no known settings for this model: layer {defaults.layer} of 0 to {layer_count(model, ffn_module) - 1} is"
        " edited. Another may do better: `neuraldb tune-layer` tries several"
    )


def merge(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    into: str | Path | None = None,
    on_conflict: str = "error",
    gamma: float | None = None,
    link: bool = False,
    model: Any = None,
    tokenizer: Any = None,
    report: Report | None = None,
    **how: Any,
) -> NeuralDB:
    """Merge databases of one model and layer into the new folder `out`, or `into` one that exists.

    Args:
        on_conflict: for facts with another target in another database: "error" (lists them, changes nothing), or
            "first" / "last" by the order of the sources (`into` comes first).
        gamma: needed where the gates differ.
        link: hard-link the arrays instead of copying them.
        model: solves facts jointly that share a key; without it they wait for `solve`.
        tokenizer: the model's.

    Raises:
        ConflictError, FingerprintError, StoreError: nothing has changed then.
    """
    from neuraldb_faiss.edits.merge import merge as merge_stores

    stores = [Store(path) for path in sources]
    target, _ = merge_stores(
        stores, out=out, into=None if into is None else Store(into, "rw"), on_conflict=on_conflict, gamma=gamma,
        link=link, model=model, tokenizer=tokenizer, report=report, **how,
    )  # fmt: skip
    for store in stores:
        store.close()
    return NeuralDB(target)
