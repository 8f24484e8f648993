"""Which databases may be merged, and how facts that then share a key are solved together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuraldb_faiss.editing.editor import Editor, check_gamma
from neuraldb_faiss.editing.pipeline import Report, edit_into, group_by_key
from neuraldb_faiss.errors import FactError, FingerprintError, StoreError
from neuraldb_faiss.models import Fingerprint
from neuraldb_faiss.store import Merged, Store, StoredFact, Transaction, merge_into

_MUST_AGREE = ("layer", "ffn_module", "d1", "d2", "residual", "keys")


def merge(
    sources: Sequence[Store],
    *,
    out: str | Path | None = None,
    into: Store | None = None,
    on_conflict: str = "error",
    gamma: float | None = None,
    link: bool = False,
    model: Any = None,
    tokenizer: Any = None,
    report: Report | None = None,
    command: str = "merge",
    wait: float = 10.0,
) -> tuple[Store, Merged]:
    """Merge `sources` into the new folder `out`, or into an open database.

    With a model, facts of different databases that share a key are solved jointly.

    Raises:
        FingerprintError: the databases are of different models, layers or kinds (both are named).
        ConflictError: see `store.merge_into`.
        StoreError: different gates and no gamma; nothing to merge.
    """
    if on_conflict not in ("error", "first", "last"):
        raise FactError(f"on_conflict is {on_conflict!r}: it must be error, first or last")
    if (out is None) == (into is None):
        raise StoreError("say where to merge: a new folder (out) or a database (into), not both")
    stores = [into, *sources] if into is not None else list(sources)
    if len(stores) < 2:
        raise StoreError("nothing to merge: name at least two databases")
    settings = [store.settings(store.generation) for store in stores]
    for store, other in zip(stores[1:], settings[1:], strict=True):
        _check_alike(stores[0], settings[0], store, other)
    gates = {one["gamma"] for one in settings}
    if gamma is None and len(gates) > 1:
        named = ", ".join(map(str, sorted(gates)))
        raise StoreError(f"the databases have different gates ({named}): give one (--gamma)")
    gate = check_gamma(gamma) if gamma is not None else settings[0]["gamma"]
    editor = None if model is None else Editor.of(settings[0], model, tokenizer)

    def solve(transaction: Transaction, groups: list[list[StoredFact]]) -> None:
        assert editor is not None
        keyed = ((fact.key_id, fact) for group in groups for fact in group)
        edit_into(transaction, editor, group_by_key(keyed), report=report, resume=False)

    new = {**settings[0], "gamma": gate, "epoch": 1, "history_start": 1, "index": {"kind": "flat"}}
    target = into or Store.create(out or "", new)
    try:
        done = merge_into(
            target, sources, on_conflict=on_conflict, link=link, solve=solve if editor else None,
            settings={"gamma": gate}, command=command, wait=wait,
        )  # fmt: skip
    except BaseException:
        if into is None:  # nothing was there before
            target.discard()
        raise
    return target, done


def _check_alike(first: Store, mine: dict[str, Any], other: Store, theirs: dict[str, Any]) -> None:
    a, b = Fingerprint.from_json(mine["fingerprint"]), Fingerprint.from_json(theirs["fingerprint"])
    if not a.matches(b):
        raise FingerprintError(
            f"{first.root} was built with {a.describe()}, {other.root} with {b.describe()}: only databases of one"
            " model and layer merge (`neuraldb rebuild` makes one for another model)"
        )
    for name in _MUST_AGREE:
        if mine[name] != theirs[name]:
            raise FingerprintError(
                f"{first.root} and {other.root} differ in {name} ({mine[name]} and {theirs[name]}): rebuild one of them"
            )
