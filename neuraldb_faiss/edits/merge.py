"""Which databases may be merged, and how facts that then share a key are solved together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from neuraldb_faiss.edits.pipeline import Report, edit_into, group_by_key
from neuraldb_faiss.errors import FactError, FingerprintError, StoreError
from neuraldb_faiss.models import Fingerprint
from neuraldb_faiss.solver.editor import Editor, check_gamma
from neuraldb_faiss.store import Merged, Store, StoredFact, Transaction, merge_into
from neuraldb_faiss.store.merge import SolveGroups

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
        check_alike(stores[0].root, settings[0], store.root, other)
    gate = common_gate(settings, gamma)
    solve = solver(settings[0], model, tokenizer, report)
    new = {**settings[0], **gate, "epoch": 1, "history_start": 1, "index": _common_index(settings)}
    making = nullcontext(into) if into is not None else Store.creating(out or "", new, command, wait=wait)
    with making as target:
        done = merge_into(
            target, sources, on_conflict=on_conflict, link=link, solve=solve, settings=gate, command=command, wait=wait
        )
    return target, done


def _common_index(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How all of them are searched; flat where they differ in kind, and sizes only where they agree."""
    first, *others = (one["index"] for one in settings)
    if any(other["kind"] != first["kind"] for other in others):
        return {"kind": "flat"}
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def solver(settings: Mapping[str, Any], model: Any, tokenizer: Any, report: Report | None) -> SolveGroups | None:
    """What solves facts that come to share a key in a database of these settings; None without a model."""
    if model is None:
        return None
    editor = Editor.of(settings, model, tokenizer)

    def solve(transaction: Transaction, groups: list[list[StoredFact]]) -> None:
        keyed = ((fact.key_id, fact) for group in groups for fact in group)
        edit_into(transaction, editor, group_by_key(keyed), report=report, resume=False)

    return solve


def common_gate(settings: Sequence[Mapping[str, Any]], gamma: float | None) -> dict[str, Any]:
    """The settings gamma, guard and floors for all of these: theirs where they agree, else the gate `gamma` behind the
    first one's guard; a name's floor is the highest. Raises StoreError where they differ and no gamma is given."""
    gates = [(float(one["gamma"]), one.get("guard") or "none") for one in settings]
    if gamma is None and len(set(gates)) > 1:
        guards = len({guard for _, guard in gates}) > 1
        named = sorted({f"{gate} with guard {guard}" if guards else str(gate) for gate, guard in gates})
        raise StoreError(f"the databases have different gates ({', '.join(named)}): give one (--gamma)")
    floors: dict[str, float] = {}
    for name, floor in (pair for one in settings for pair in (one.get("floors") or {}).items()):
        floors[name] = max(floor, floors.get(name, 0.0))
    common: dict[str, Any] = {"gamma": gates[0][0] if gamma is None else check_gamma(gamma)}
    if any("guard" in one for one in settings):
        common["guard"] = gates[0][1]
    return {**common, "floors": floors} if floors else common


def check_alike(first: str | Path, mine: Mapping[str, Any], other: str | Path, theirs: Mapping[str, Any]) -> None:
    """Raises FingerprintError unless what has the settings `mine` and `theirs` is of one model, layer and kind."""
    a, b = Fingerprint.from_json(mine["fingerprint"]), Fingerprint.from_json(theirs["fingerprint"])
    if not a.matches(b):
        raise FingerprintError(
            f"{first} was built with {a.describe()}, {other} with {b.describe()}: only databases of one"
            " model and layer merge (`neuraldb rebuild` makes one for another model)"
        )
    for name in _MUST_AGREE:
        if mine[name] != theirs[name]:
            raise FingerprintError(
                f"{first} and {other} differ in {name} ({mine[name]} and {theirs[name]}): rebuild one of them"
            )
