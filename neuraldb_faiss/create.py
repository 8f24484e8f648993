"""Functions that make a database: `build` from facts, `merge` from databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuraldb_faiss.database import NeuralDB
from neuraldb_faiss.store import Store

if TYPE_CHECKING:  # torch, transformers and faiss load only when they are used
    from typing import Unpack

    from neuraldb_faiss.facts import Fact
    from neuraldb_faiss.options import BuildConfig, CreateOptions, MergeOptions


def build(
    facts: Iterable[Fact],
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    config: BuildConfig | None = None,
    **options: Unpack[CreateOptions],
) -> NeuralDB:
    """Build a database of `facts` for `model` in the new folder `path`; killed, the same call resumes.

    Args:
        model: None for a database whose facts are only stated (`NeuralDB.ground`): nothing is solved.
        tokenizer: the model's; None without one.
        config: how keys and residuals are made, and how keys are searched; the defaults otherwise.
        options: fields of `BuildConfig` that replace those of `config` (layer, residual, keys, guard, gamma,
            ffn_module, seed, index, delivery, steps, max_steps, lr, weight_decay, clamp, kl_factor, stop_loss,
            kl_prompts, chat, end_factor), and of `CreateOptions` (on_conflict, drop_failed, report, command).

    Raises:
        NeuralDBError: its subclass and message say what is wrong.

    Examples:
        >>> fact = Fact(subject="Paris", prompt="{} is the capital of", target="Italy")
        >>> db = build([fact], model, tokenizer, folder / "new", layer=1, residual="none")
        >>> len(db), db.guard
        (1, 'subject')
    """
    from neuraldb_faiss.edits.build import build_store

    return NeuralDB(build_store(facts, model, tokenizer, path, config, options))


def merge(
    sources: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    into: str | Path | None = None,
    on_conflict: str = "error",
    gamma: float | None = None,
    **options: Unpack[MergeOptions],
) -> NeuralDB:
    """Merge databases of one model and layer into the new folder `out`, or `into` one that exists.

    Args:
        on_conflict: for facts with another target in another database: "error" (lists them, changes nothing), or
            "first" / "last" by the order of the sources (`into` comes first).
        gamma: needed where the gates differ.
        options: of `MergeOptions`: link (the arrays, instead of copying them), model and tokenizer (to solve facts
            jointly that share a key; without, they wait for `solve`), report, command, wait.

    Raises:
        ConflictError, FingerprintError, StoreError: nothing has changed then.

    Examples:
        >>> merged = merge([folder / "db", folder / "other"], folder / "both")
        >>> [fact.subject for fact in merged.facts()]
        ['Rome', 'Oslo']
    """
    from neuraldb_faiss.edits.merge import merge as merge_stores

    stores = [Store(path) for path in sources]
    target, _ = merge_stores(
        stores, out=out, into=None if into is None else Store(into, "rw"), on_conflict=on_conflict, gamma=gamma,
        **options,
    )  # fmt: skip
    for store in stores:
        store.close()
    return NeuralDB(target)
